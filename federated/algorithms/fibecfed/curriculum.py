"""Curriculum: number and order of the examples admitted in a round, easy ones first (Liu et al., EMNLP 2024)."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from federated.algorithm_kit.local_training import epoch_order
from federated.algorithms.fibecfed.config import FibecFedConfig

_STAGES = 4
_STEEPNESS = 10.0


def admitted_share(pacing: str, tau: float, start: float) -> float:
    """Share of the batches admitted at `tau` in [0, 1]. Rises from `start` to 1."""
    if pacing == "none":
        return 1.0
    growth = {
        "linear": tau,
        "sqrt": math.sqrt(tau),
        "quadratic": tau * tau,
        "exponential": math.expm1(_STEEPNESS * tau) / math.expm1(_STEEPNESS),
        "step": math.floor(_STAGES * tau) / _STAGES,
    }[pacing]
    return start + (1 - start) * growth


def examples_to_admit(config: FibecFedConfig, examples: int, number: int, rounds: int) -> int:
    """Number of a client's examples admitted in round `number` of `rounds`: whole batches, at least one."""
    tau = min(1.0, number / (config.pacing_share * rounds))
    batches = math.ceil(examples / config.batch_size)
    # 0.6 of 5 batches are 3, not the 4 that 3.0000000000000004 rounds up to.
    share = admitted_share(config.pacing, tau, config.pacing_start)
    batch_count = max(1, math.ceil(batches * share - 1e-9))
    return min(examples, batch_count * config.batch_size)


def easy_first(difficulty: Tensor) -> list[int]:
    """Indices of the examples by ascending difficulty. Equal ones stay in their order."""
    order: list[int] = torch.argsort(difficulty, stable=True).tolist()
    return order


def curriculum_order(
    indices: Sequence[int], examples: int, seed: int, *, easy_to_hard: bool
) -> Callable[[int], Sequence[int]]:
    """Epoch -> the admitted `indices`, in the order in which the plain loop would shuffle all examples."""
    if easy_to_hard:
        return lambda epoch: indices
    members = set(indices)
    return lambda epoch: [index for index in epoch_order(seed, epoch, examples) if index in members]
