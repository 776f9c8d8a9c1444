"""`max_update_norm` with every algorithm: real updates just within it are accepted, and refused just beyond it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.artifacts import service as artifacts
from coordinator.rounds import conductor
from coordinator.rounds.schemas import CheckInput, Method
from federated import registry
from federated.algorithm_kit.number_checks import MAX_VALUE
from federated.payloads.payload import Payload
from federated.trainable import Lora
from tests.support import rounds_by_hand as rounds
from tests.support.rounds_by_hand import Sample

# What no norm counts: base values, directions, scores and shares. By name, so that no table of ours decides it.
UNCOUNTED = ("/base", "seeds", "layer_scores", "kept_share", "shares")


def samples() -> list[Sample]:
    """One for each algorithm, trainable and way to count layers; and those with trained biases."""
    found = {}
    for one in rounds.samples():
        config = one.config.model_dump()
        found.setdefault((one.algorithm, one.trainable.kind, config.get("layer_count")), one)
        if one.trainable.kind == "lora" and one.algorithm != "fedkseed":
            trainable = Lora(r=2, lora_alpha=4, bias="all")
            found.setdefault((one.algorithm, "biases", None), Sample(one.algorithm, one.config, trainable))
    return list(found.values())


SAMPLES = samples()
every_sample = pytest.mark.parametrize(
    "sample", SAMPLES, ids=[f"{index}-{one.algorithm}-{one.trainable.kind}" for index, one in enumerate(SAMPLES)]
)


def method_of(sample: Sample) -> Method:
    return Method(
        algorithm=sample.algorithm,
        config=sample.config.model_dump(mode="json"),
        trainable=sample.trainable.model_dump(mode="json"),
        model=sample.federation.open(0, 0).facts.model_dump(mode="json"),
        seed=sample.federation.seed,
        number=1,
        kind="train",
        rounds=5,
        client_count=sample.clients,
    )


def counted(update: Payload) -> dict[str, float]:
    """The norm of each tensor that is a change of the model."""
    names = [name for name in update if not name.endswith(UNCOUNTED)]
    return {name: math.sqrt(math.fsum(x * x for x in update[name].double().flatten().tolist())) for name in names}


def verdict(
    sample: Sample, instruction: Payload, update: Payload, max_norm: float | None, folder: Path
) -> Mapping[str, Any] | None:
    digests = []
    for payload in (instruction, update):
        payload.write(folder / "payload")
        digests.append(artifacts.put_file(folder / "payload").digest)
    given = CheckInput(method_of(sample), (("job", digests[0], digests[1]),), max_norm)
    return conductor.check(given).problems["job"]


@every_sample
class TestEveryAlgorithm:
    def test_updates_count_by_their_changes_alone(self, sample: Sample, data_folder: Path, tmp_path: Path) -> None:
        state, measured = rounds.first_state(sample), 0
        for _ in range(3):  # preparation too, and the round after base values were told
            instructions, updates = rounds.instructions(sample, state), rounds.updates(sample, state)
            for update in updates[:1]:
                norms = counted(update.payload)
                norm = math.sqrt(math.fsum(value * value for value in norms.values()))
                asked = instructions[update.ordinal], update.payload
                assert verdict(sample, *asked, max(norm, 1e-6) * 1.000001, tmp_path) is None
                base = {name: update.payload[name] + 1e4 for name in update.payload if name.endswith("/base")}
                moved = Payload({**update.payload, **base})
                assert verdict(sample, asked[0], moved, max(norm, 1e-6) * 1.000001, tmp_path) is None
                if norm > 0:
                    problem = verdict(sample, *asked, norm * 0.999999, tmp_path)
                    assert problem is not None
                    assert (problem["code"], problem["tensor"]) == ("update_norm", max(norms, key=norms.__getitem__))
                    measured += 1
            state = rounds.through_bytes(sample.server.aggregate(state, updates, rounds.step_of(state, sample)).state)
        assert measured

    def test_what_counts_is_bounded_without_a_norm_too_and_nothing_is_infinite(
        self, sample: Sample, data_folder: Path, tmp_path: Path
    ) -> None:
        state = rounds.first_state(sample)
        instruction, update = rounds.instructions(sample, state)[0], rounds.updates(sample, state)[0].payload
        for name in update:
            if not update[name].is_floating_point():
                continue
            for size in (3e38, -3e38, 1e30, -1e30, MAX_VALUE * 1.01, math.inf, -math.inf, math.nan):
                spoilt = Payload({**update, name: with_one(update[name], size)}, update.facts)
                problem = verdict(sample, instruction, spoilt, None, tmp_path)
                if not math.isfinite(size):
                    assert problem is not None
                    assert (problem["code"], problem["tensor"]) == ("update_not_finite", name)
                elif name in counted(update):
                    assert problem is not None
                    assert (problem["code"], problem["tensor"]) == ("update_too_large", name)


def with_one(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """A copy that has this value in one place."""
    changed = tensor.clone()
    changed.view(-1)[-1] = value
    return changed


def test_the_samples_have_base_values_directions_and_scores() -> None:
    asked = [rounds.instructions(sample, rounds.first_state(sample))[0].facts["expects"] for sample in SAMPLES]
    names = {name for expects in asked for name in expects}
    assert {kind for kind in UNCOUNTED if any(name.endswith(kind) for name in names)} == set(UNCOUNTED)
    assert {sample.algorithm for sample in SAMPLES} == set(registry.algorithms())
