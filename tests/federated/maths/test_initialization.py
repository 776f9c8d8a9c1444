"""Initial values: the same bits everywhere."""

import hashlib
import math
from typing import Any

import pytest
import torch

from federated.maths.generator import stream_key, words
from federated.maths.initialization import seeded_values, start
from federated.trainable import Initialization, TensorFacts


def facts(kind: Any, scale: float = 0.0, shape: tuple[int, ...] = (7, 33), name: str = "layer.weight") -> TensorFacts:
    return TensorFacts(name=name, shape=shape, dtype="F32", initialisation=Initialization(kind=kind, scale=scale))


@pytest.mark.parametrize(
    ("kind", "scale", "seed", "digest"),
    [
        ("uniform", 0.125, 0, "d04d111bf73fe380068c462b91107395e299eba59130497ee3d5463d7f204986"),
        (
            "uniform",
            1 / math.sqrt(384),
            2**63 - 1,
            "8ffbbca902d6af443c6743769f0735a911e0a81d5c9530b3c15315a383c6c7cc",
        ),
        ("normal", 0.02, 0, "0c5ed9aebbd1104317c343151b2730393e4a6a72690fbeabd30c0fa519555406"),
        ("normal", 1.0, 41, "f10468be43c69c4db120a2b1138b3ddfa125882c439d08c82f19757d1b40df47"),
    ],
)
def test_a_start_has_its_golden_digest(kind: str, scale: float, seed: int, digest: str) -> None:
    value = start(seed, facts(kind, scale))
    assert hashlib.sha256(value.numpy().tobytes()).hexdigest() == digest


@pytest.mark.parametrize("kind", ["zeros", "base"])
def test_zeros_and_differences_start_at_zero(kind: str) -> None:
    value = start(3, facts(kind))
    assert value.shape == (7, 33)
    assert value.dtype == torch.float32
    assert not value.any()


def test_a_uniform_start_is_its_words_scaled_by_one_float() -> None:
    drawn = words(stream_key(5, "layer.weight"), 0, 231)
    by_hand = [((word >> 8) - 2**23) for word in drawn.tolist()]
    factor = torch.tensor(0.3 / 2**23, dtype=torch.float32)
    assert torch.equal(start(5, facts("uniform", 0.3)).flatten(), torch.tensor(by_hand, dtype=torch.float32) * factor)


def test_a_normal_start_is_the_sum_of_eight_bytes_scaled_by_one_float() -> None:
    drawn = words(stream_key(5, "layer.weight"), 0, 462).tolist()
    sums = [
        sum(a.to_bytes(4, "little")) + sum(b.to_bytes(4, "little"))
        for a, b in zip(drawn[::2], drawn[1::2], strict=True)
    ]
    factor = torch.tensor(0.3 / math.sqrt(43690), dtype=torch.float32)
    by_hand = (torch.tensor(sums, dtype=torch.float32) - 1020) * factor
    assert torch.equal(start(5, facts("normal", 0.3)).flatten(), by_hand)


@pytest.mark.parametrize(("kind", "deviation"), [("uniform", 0.5 / math.sqrt(3)), ("normal", 0.5)])
def test_a_large_start_has_the_asked_mean_and_deviation(kind: str, deviation: float) -> None:
    value = start(1, facts(kind, 0.5, shape=(400, 500))).double()
    assert abs(float(value.mean())) < 5 * deviation / math.sqrt(200_000)
    assert float(value.std()) == pytest.approx(deviation, rel=0.01)
    assert kind == "normal" or (float(value.min()) >= -0.5 and float(value.max()) < 0.5)


def test_a_tensor_larger_than_a_chunk_begins_as_a_small_one() -> None:
    large, small = start(1, facts("normal", 1.0, shape=(70_000,))), start(1, facts("normal", 1.0, shape=(65_600,)))
    assert torch.equal(large[:65_600], small)


def test_every_name_and_seed_starts_elsewhere() -> None:
    starts = [start(seed, facts("normal", 1.0, name=name)) for seed in (0, 1) for name in ("a", "b")]
    assert all(not torch.equal(a, b) for i, a in enumerate(starts) for b in starts[:i])


def test_seeded_values_are_the_starts_of_their_facts() -> None:
    tensor = facts("normal", 0.5)
    assert torch.equal(seeded_values(9, [tensor.model_dump(mode="json")])["layer.weight"], start(9, tensor))
