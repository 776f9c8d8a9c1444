"""Accumulators of FedKSeed: the distance that the model has moved along each of K directions.

They are all that the server keeps of the model. With `w -= eta g z_j` at each step, the model of any client is
`w_0 - sum_j a_j z_j`. The weighted mean of the clients' models is the same expression with the weighted mean of their
`a`. Sums are exact before they are rounded, so they do not depend on the order of clients or steps.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Steps:
    """One client's steps in a round. `seeds`: (n,) directions, `scalars`: (n,), `share`: its weight in the mean."""

    seeds: Sequence[int]
    scalars: Sequence[float]
    share: float


def accumulate(before: Tensor, records: Sequence[Steps], learning_rate: float) -> Tensor:
    """`a` after a round: (K,) float64 -> (K,) float64, `a_j += sum over clients of share * learning_rate * g`."""
    terms: defaultdict[int, list[float]] = defaultdict(list)
    for record in records:
        for seed, scalar in zip(record.seeds, record.scalars, strict=True):
            terms[seed].append(record.share * learning_rate * scalar)
    return _add_exactly(before, terms)


def count_scalars(counts: Tensor, records: Sequence[Steps]) -> Tensor:
    """Number of scalars for each direction: (K,) int64."""
    seeds = [seed for record in records for seed in record.seeds]
    return counts + torch.bincount(torch.tensor(seeds, dtype=torch.int64), minlength=len(counts))


def sum_sizes(sums: Tensor, records: Sequence[Steps], bound: float) -> Tensor:
    """Sum of the scalars' magnitudes for each direction, each clipped at `bound`: (K,) float64."""
    terms: defaultdict[int, list[float]] = defaultdict(list)
    for record in records:
        for seed, scalar in zip(record.seeds, record.scalars, strict=True):
            terms[seed].append(min(abs(scalar), bound))
    return _add_exactly(sums, terms)


def _add_exactly(before: Tensor, terms: defaultdict[int, list[float]]) -> Tensor:
    after = before.clone()
    for seed, values in terms.items():
        after[seed] = math.fsum([float(before[seed]), *values])
    return after
