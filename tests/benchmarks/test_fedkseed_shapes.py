"""Decoder shapes and the three rebuild methods of the FedKSeed benchmark."""

import pytest
import torch

from benchmarks.fedkseed_shapes import SHAPES, measure, rebuild, rebuild_as_the_authors, weights_of
from federated.maths.directions import directions

CPU = torch.device("cpu")


@pytest.mark.parametrize(("shape", "elements"), [("1.3b", 1.35e9), ("7b", 6.74e9)])
def test_a_shape_has_the_weights_of_its_model(shape: str, elements: float) -> None:
    assert sum(SHAPES[shape].sizes().values()) == pytest.approx(elements, rel=0.01)


def test_a_rebuild_takes_the_sum_of_directions_from_the_weights() -> None:
    weights = {name: value.float() for name, value in weights_of(SHAPES["tiny"], CPU).items()}
    before = {name: value.clone() for name, value in weights.items()}
    coefficients = torch.zeros(128)
    coefficients[3], coefficients[7] = 0.5, -2.0
    rebuild("hadamard", weights, coefficients, CPU)
    field = directions("hadamard", 5, 128).over({name: value.numel() for name, value in weights.items()}, CPU)
    for name, value in weights.items():
        difference = 0.5 * field.direction(3).values(name) - 2.0 * field.direction(7).values(name)
        torch.testing.assert_close(before[name] - value, difference, rtol=1e-5, atol=1e-5)


def test_the_authors_way_draws_each_direction_by_its_seed() -> None:
    weights = {"a": torch.zeros(6, dtype=torch.float32)}
    rebuild_as_the_authors(weights, torch.tensor([2.0, 0.0]), CPU)
    assert torch.equal(weights["a"], -2 * torch.randn(6, generator=torch.Generator().manual_seed(0)))


def test_what_is_measured_is_scaled_to_all_directions() -> None:
    times = measure(SHAPES["tiny"], CPU, 128, repeats=1, explicit=2)
    assert times["elements"] == sum(SHAPES["tiny"].sizes().values())
    assert times["ratio_to_authors"] == times["authors_seconds_scaled"] / times["structured_seconds"] > 0
