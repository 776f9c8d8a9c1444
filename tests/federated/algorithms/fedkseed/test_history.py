"""Tests of the accumulators: K scalars are the mean of the clients' models, exactly and in any order."""

import itertools
import random

import pytest
import torch
from torch import Tensor

from federated.algorithms.fedkseed.history import Steps, accumulate, count_scalars, sum_sizes
from federated.maths.directions import Kind, directions

COUNT = 128
SIZES = {"weight": 300, "bias": 7}
RATE = 0.01


def records(clients: int, steps: int = 40) -> list[Steps]:
    draw = random.Random(4)
    shares = [draw.random() for _ in range(clients)]
    return [
        Steps(
            [draw.randrange(COUNT) for _ in range(steps)],
            [draw.gauss(0, 3) for _ in range(steps)],
            share / sum(shares),
        )
        for share in shares
    ]


def walk(begin: Tensor, rows: Tensor, record: Steps) -> Tensor:
    """A client's model after `w -= RATE * g * z_j` for each of its steps, in float64."""
    value = begin.clone()
    for seed, scalar in zip(record.seeds, record.scalars, strict=True):
        value -= RATE * scalar * rows[seed]
    return value


@pytest.mark.parametrize("kind", ["hadamard", "rademacher"])
def test_the_rebuilt_model_is_the_weighted_mean_of_the_clients_models(kind: Kind) -> None:
    field = directions(kind, 11, COUNT).over(SIZES, torch.device("cpu"))
    sums, steps = torch.zeros(COUNT, dtype=torch.float64), records(5)
    for name, elements in SIZES.items():
        begin = torch.linspace(-1, 1, elements, dtype=torch.float64)
        rows = torch.stack([field.direction(index).values(name) for index in range(COUNT)]).double()
        mean = sum(record.share * walk(begin, rows, record) for record in steps)
        rebuilt = begin - field.combination(name, accumulate(sums, steps, RATE))
        torch.testing.assert_close(rebuilt, mean, rtol=0, atol=1e-12)


def test_a_second_round_goes_on_from_the_first() -> None:
    first, second = records(2)[:1], records(2)[1:]
    zeros = torch.zeros(COUNT, dtype=torch.float64)
    together = accumulate(zeros, [*first, *second], RATE)
    torch.testing.assert_close(accumulate(accumulate(zeros, first, RATE), second, RATE), together)


def test_any_order_of_clients_and_of_steps_gives_the_same_bits() -> None:
    steps = records(3)
    zeros = torch.full((COUNT,), 0.1, dtype=torch.float64)
    reference = accumulate(zeros, steps, RATE)
    for order in itertools.permutations(steps):
        backwards = [Steps(record.seeds[::-1], record.scalars[::-1], record.share) for record in order]
        assert torch.equal(accumulate(zeros, backwards, RATE), reference)
        sizes = sum_sizes(zeros, backwards, 2.0)
        assert torch.equal(sizes, sum_sizes(zeros, steps, 2.0))


def test_counts_and_sizes_are_those_of_every_scalar_clipped() -> None:
    steps = [Steps([1, 1, 3], [0.5, -7.0, 2.0], 0.5), Steps([3], [-1.0], 0.5)]
    assert count_scalars(torch.tensor([1, 0, 0, 0]), steps).tolist() == [1, 2, 0, 2]
    assert sum_sizes(torch.zeros(4, dtype=torch.float64), steps, 5.0).tolist() == [0.0, 5.5, 0.0, 3.0]


def test_no_records_change_nothing() -> None:
    before = torch.rand(COUNT, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(accumulate(before, [Steps([], [], 1.0)], RATE), before)
