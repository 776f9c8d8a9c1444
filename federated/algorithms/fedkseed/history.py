"""The server's whole memory of a model: how far it went along each of K directions.

With `w -= eta g z_j` at each step, the model of any client is `w_0 - sum_j a_j z_j`, and the weighted mean of the
clients' models is the same with the weighted mean of their `a`. Sums are exact before they are rounded, so they do
not depend on the order of clients or steps.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Steps:
    """One client's record of a round. `seeds`: (n,) directions; `scalars`: (n,); `share`: its part of the mean."""

    seeds: Sequence[int]
    scalars: Sequence[float]
    share: float


def accumulated(before: Tensor, records: Sequence[Steps], learning_rate: float) -> Tensor:
    """`a` after a round: (K,) float64 -> (K,) float64, `a_j += sum over clients of share * learning_rate * g`."""
    terms: defaultdict[int, list[float]] = defaultdict(list)
    for record in records:
        for seed, scalar in zip(record.seeds, record.scalars, strict=True):
            terms[seed].append(record.share * learning_rate * scalar)
    return _with(before, terms)


def counted(counts: Tensor, records: Sequence[Steps]) -> Tensor:
    """How many scalars there were for each direction: (K,) int64."""
    drawn = [seed for record in records for seed in record.seeds]
    return counts + torch.bincount(torch.tensor(drawn, dtype=torch.int64), minlength=len(counts))


def summed_sizes(sums: Tensor, records: Sequence[Steps], bound: float) -> Tensor:
    """Sum of the scalars' sizes for each direction, each clipped at `bound`: (K,) float64."""
    terms: defaultdict[int, list[float]] = defaultdict(list)
    for record in records:
        for seed, scalar in zip(record.seeds, record.scalars, strict=True):
            terms[seed].append(min(abs(scalar), bound))
    return _with(sums, terms)


def _with(before: Tensor, terms: defaultdict[int, list[float]]) -> Tensor:
    after = before.clone()
    for seed, values in terms.items():
        after[seed] = math.fsum([float(before[seed]), *values])
    return after
