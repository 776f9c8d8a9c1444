"""One suite for every sampler of directions, with pinned bits for each."""

import hashlib
from typing import get_args

import pytest
import torch
from torch import Tensor

from federated.maths.directions import Directions, Field, Kind, directions, probe_digest

CPU = torch.device("cpu")
KINDS: tuple[Kind, ...] = get_args(Kind)
COUNT = 128
SIZES = {"encoder.weight": 3 * COUNT + 17, "bias": 5, "block": COUNT}
PINNED = {
    "hadamard": "98597941fbe0f8b27f5305228bc0300d3f6adf53b9d9beac3a50e6d15e7e09e5",
    "rademacher": "d460a41d66b5bed839925c282941bdac1426d1b0c8c95f94ea09d7017d2da0e0",
    "gaussian": "22f0add00c9ff8f7cb13a2188998b36564fbe08efc58a037b18adcb74df4f8ee",
}
PINNED_PROBES = {
    ("hadamard", 4096): "sha256:51e23304f1d57ba7c8dfd98f9c3a2e023fa16541479c262088b24362bb39a77f",
    ("hadamard", 1024): "sha256:84da3991d17fa8826110e362fe28f7888b9c8da9657181d9ba1ee36b25da9995",
    ("rademacher", 1024): "sha256:d9771a0b7f338520addab9f89646dadd286ffc734e88d3728aa67dbfd43040fa",
    ("gaussian", 1024): "sha256:48f04499ad1d6a27d373b4703fb634e29f32273b88f03793afe29463729587b3",
}

every_kind = pytest.mark.parametrize("kind", KINDS)


def field(kind: Kind, seed: int = 3, device: torch.device = CPU, **sizes: int) -> Field:
    return directions(kind, seed, COUNT).over(sizes or SIZES, device)


def digest_of(made: Directions, device: torch.device) -> str:
    """Of the first, a middle and the last direction over all of `SIZES`."""
    opened = made.over(SIZES, device)
    digest = hashlib.sha256()
    for index in (0, COUNT // 3, COUNT - 1):
        for name in SIZES:
            digest.update(opened.direction(index).values(name).cpu().numpy().tobytes())
    return digest.hexdigest()


def explicit_sum(opened: Field, name: str, coefficients: Tensor) -> Tensor:
    rows = [opened.direction(index).values(name) for index in range(COUNT)]
    return coefficients @ torch.stack(rows).to(coefficients.dtype)


@every_kind
class TestAnElement:
    def test_has_the_committed_bits(self, kind: Kind) -> None:
        assert digest_of(directions(kind, 7, COUNT), CPU) == PINNED[kind]

    def test_does_not_depend_on_the_other_tensors(self, kind: Kind) -> None:
        together = field(kind).direction(9)
        for name, elements in SIZES.items():
            alone = field(kind, **{name: elements}).direction(9)
            assert torch.equal(alone.values(name), together.values(name))

    def test_does_not_depend_on_what_comes_after_it_or_on_the_chunk_it_lies_in(self, kind: Kind) -> None:
        # More elements than the largest chunk has.
        whole = field(kind, weight=300_001).direction(9).values("weight")
        for elements in (1, COUNT - 1, COUNT, 5000, 262_145):
            assert torch.equal(field(kind, weight=elements).direction(9).values("weight"), whole[:elements])

    def test_depends_on_seed_direction_and_name(self, kind: Kind) -> None:
        first = field(kind, weight=COUNT).direction(9).values("weight")
        others = [
            field(kind, seed=4, weight=COUNT).direction(9).values("weight"),
            field(kind, weight=COUNT).direction(10).values("weight"),
            field(kind, other=COUNT).direction(9).values("other"),
        ]
        assert all(not torch.equal(first, other) for other in others)

    def test_has_mean_zero_and_variance_one_and_goes_with_no_other(self, kind: Kind) -> None:
        rows = torch.stack([field(kind, weight=100_000).direction(index).values("weight") for index in range(6)])
        products = rows.double() @ rows.double().T / rows.shape[1]
        # Standard errors: 0.0045 of a square, 0.0032 of a product and of a mean.
        assert (products - torch.eye(6)).abs().max() < 0.02
        assert rows.mean(dim=1).abs().max() < 0.015


@every_kind
class TestACombination:
    def test_is_the_explicit_sum(self, kind: Kind) -> None:
        coefficients = torch.randn(COUNT, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for name in SIZES:
            made = field(kind).combination(name, coefficients)
            # A Gaussian element is rounded to float32, the factor of the sum is not.
            tolerance = 1e-5 if kind == "gaussian" else 1e-12
            torch.testing.assert_close(made, explicit_sum(field(kind), name, coefficients), rtol=0, atol=tolerance)
            narrow = field(kind).combination(name, coefficients.float())
            assert narrow.dtype is torch.float32
            torch.testing.assert_close(narrow.double(), made, rtol=1e-4, atol=1e-4)

    def test_of_nothing_is_zero(self, kind: Kind) -> None:
        assert not field(kind).combination("bias", torch.zeros(COUNT)).any()

    def test_leaves_the_global_generator_alone(self, kind: Kind) -> None:
        before = torch.get_rng_state()
        field(kind).combination("bias", torch.ones(COUNT))
        field(kind).direction(1)
        assert torch.equal(torch.get_rng_state(), before)


@every_kind
class TestAMove:
    def test_adds_the_scaled_direction_rounded_once(self, kind: Kind) -> None:
        begin = {name: torch.linspace(-1, 1, elements) for name, elements in SIZES.items()}
        out = {name: torch.empty(elements) for name, elements in SIZES.items()}
        direction = field(kind).direction(9)
        direction.move(-0.003, begin, out)
        for name in SIZES:
            torch.testing.assert_close(out[name], begin[name] - 0.003 * direction.values(name), rtol=0, atol=2e-7)

    def test_that_follows_another_is_two_moves_bit_for_bit(self, kind: Kind) -> None:
        clean = {name: torch.linspace(-1, 1, elements) for name, elements in SIZES.items()}
        out = {name: torch.empty(elements) for name, elements in SIZES.items()}
        stepped = {name: value.clone() for name, value in clean.items()}
        perturbed = {name: torch.empty(elements) for name, elements in SIZES.items()}
        last, direction = field(kind).direction(9), field(kind).direction(4)
        last.move(-0.003, stepped, stepped)
        direction.move(0.01, stepped, perturbed)
        direction.follow(last, -0.003, 0.01, clean, out)
        for name in SIZES:
            assert torch.equal(clean[name], stepped[name])
            assert torch.equal(out[name], perturbed[name])

    def test_may_be_in_place(self, kind: Kind) -> None:
        begin = {name: torch.linspace(-1, 1, elements) for name, elements in SIZES.items()}
        out = {name: torch.empty(elements) for name, elements in SIZES.items()}
        direction = field(kind).direction(9)
        direction.move(0.25, begin, out)
        direction.move(0.25, begin, begin)
        assert all(torch.equal(begin[name], out[name]) for name in SIZES)

    @pytest.mark.parametrize("index", [-1, COUNT])
    def test_along_a_direction_that_does_not_exist_is_refused(self, kind: Kind, index: int) -> None:
        with pytest.raises(IndexError, match=f"there are {COUNT} directions, not one of index {index}"):
            field(kind).direction(index)


class TestTheProbe:
    @pytest.mark.parametrize(("kind", "count"), PINNED_PROBES)
    def test_has_the_committed_digest(self, kind: Kind, count: int) -> None:
        assert probe_digest(kind, count, CPU) == PINNED_PROBES[kind, count]

    def test_differs_between_kinds_and_numbers_of_directions(self) -> None:
        assert len({probe_digest(kind, count, CPU) for kind in KINDS for count in (128, 256)}) == 6

    @pytest.mark.parametrize("count", [128, 4096])
    def test_is_a_sum_that_float32_holds_exactly(self, count: int) -> None:
        coefficients = torch.arange(count) % 17 - 8
        opened = directions("hadamard", 5, count).over({"probe": 2 * count + 9}, CPU)
        wide = opened.combination("probe", coefficients.double())
        assert torch.equal(opened.combination("probe", coefficients.float()).double(), wide)
        assert wide.abs().max() < 2**24


@pytest.mark.gpu
class TestOnAGpu:
    @every_kind
    def test_elements_and_probe_have_the_same_bits(self, kind: Kind) -> None:
        cuda = torch.device("cuda")
        assert digest_of(directions(kind, 7, COUNT), cuda) == PINNED[kind]
        assert probe_digest(kind, 1024, cuda) == probe_digest(kind, 1024, CPU)

    @every_kind
    def test_a_move_has_the_same_bits(self, kind: Kind) -> None:
        found = []
        for device in (CPU, torch.device("cuda")):
            begin = {name: torch.linspace(-1, 1, elements).to(device) for name, elements in SIZES.items()}
            field(kind, device=device).direction(9).move(0.001, begin, begin)
            found.append(torch.cat([begin[name].cpu() for name in SIZES]))
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=0 if kind == "hadamard" else 1e-7)

    @every_kind
    def test_a_combination_agrees_to_rounding(self, kind: Kind) -> None:
        coefficients = torch.randn(COUNT, generator=torch.Generator().manual_seed(1))
        for name in SIZES:
            here = field(kind).combination(name, coefficients)
            there = field(kind, device=torch.device("cuda")).combination(name, coefficients)
            torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)
