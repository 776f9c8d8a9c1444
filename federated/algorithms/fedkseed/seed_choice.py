"""Which direction a step takes: uniform, or by what its scalars have been so far (FedKSeed-Pro, section 3.4)."""

import torch
from torch import Tensor

from federated.maths.generator import stream_key, words


def probabilities(counts: Tensor, sums: Tensor) -> Tensor:
    """The next round's probabilities: float64 (K,), sum 1, largest over smallest at most e.

    counts, sums: (K,), how many scalars there were for each direction and the sum of their clipped sizes. Every
    direction counts one more scalar, 0, so that all are equal before the first round.
    """
    means = sums.double() / (counts.double() + 1)
    low, high = means.min(), means.max()
    return torch.softmax((means - low) / (high - low + 1e-10), dim=0)


def uniform_seeds(job_seed: int, steps: int, count: int) -> list[int]:
    """`steps` directions out of `count`, each as likely as any other; a function of the job's seed."""
    drawn: list[int] = ((_words(job_seed, steps) * count) >> 32).tolist()
    return drawn


def chosen_seeds(job_seed: int, steps: int, likely: Tensor) -> list[int]:
    """`steps` directions by their probabilities, (K,) float32; a function of the job's seed."""
    # On the CPU in float64, so that it is the same draw on every worker.
    reached = likely.cpu().double().cumsum(dim=0)
    point = (_words(job_seed, steps).double() + 0.5) / 2**32 * reached[-1]
    drawn: list[int] = torch.searchsorted(reached, point).clamp(max=len(reached) - 1).tolist()
    return drawn


def _words(job_seed: int, steps: int) -> Tensor:
    return words(stream_key(job_seed, "choice of directions"), 0, steps)
