"""Sampling of directions: uniform, or by the mean magnitude of their scalars (FedKSeed-Pro, section 3.4)."""

import torch
from torch import Tensor

from federated.maths.generator import stream_key, words


def probabilities(counts: Tensor, sums: Tensor) -> Tensor:
    """Probabilities of the next round: float64 (K,), sum 1, largest over smallest at most e.

    counts, sums: (K,), number of scalars for each direction and sum of their clipped magnitudes. Every direction
    counts one extra scalar, 0, so that all are equal before the first round.
    """
    means = sums.double() / (counts.double() + 1)
    low, high = means.min(), means.max()
    return torch.softmax((means - low) / (high - low + 1e-10), dim=0)


def uniform_seeds(job_seed: int, steps: int, count: int) -> list[int]:
    """`steps` directions out of `count`, uniformly, as a function of the job's seed."""
    seeds: list[int] = ((_words(job_seed, steps) * count) >> 32).tolist()
    return seeds


def weighted_seeds(job_seed: int, steps: int, weights: Tensor) -> list[int]:
    """`steps` directions by their probabilities `weights`, (K,) float32, as a function of the job's seed."""
    # On the CPU in float64, so that every worker draws the same.
    cumulative = weights.cpu().double().cumsum(dim=0)
    point = (_words(job_seed, steps).double() + 0.5) / 2**32 * cumulative[-1]
    seeds: list[int] = torch.searchsorted(cumulative, point).clamp(max=len(cumulative) - 1).tolist()
    return seeds


def _words(job_seed: int, steps: int) -> Tensor:
    return words(stream_key(job_seed, "choice of directions"), 0, steps)
