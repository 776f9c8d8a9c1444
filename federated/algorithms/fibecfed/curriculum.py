"""Easy examples first: how many are admitted in a round, and in which order (Liu et al., EMNLP 2024)."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from federated.algorithm_kit.local_training import epoch_order
from federated.algorithms.fibecfed.config import FibecFedConfig

_STAGES = 4
_STEEPNESS = 10.0


def admitted_share(pacing: str, tau: float, start: float) -> float:
    """Share of the batches admitted at `tau` in [0, 1]: from `start` to 1, never falling."""
    if pacing == "none":
        return 1.0
    grown = {
        "linear": tau,
        "sqrt": math.sqrt(tau),
        "quadratic": tau * tau,
        "exponential": math.expm1(_STEEPNESS * tau) / math.expm1(_STEEPNESS),
        "step": math.floor(_STAGES * tau) / _STAGES,
    }[pacing]
    return start + (1 - start) * grown


def admitted_examples(config: FibecFedConfig, examples: int, number: int, rounds: int) -> int:
    """How many of a client's examples round `number` of `rounds` admits: whole batches, at least one."""
    tau = min(1.0, number / (config.pacing_share * rounds))
    batches = math.ceil(examples / config.batch_size)
    # 0.6 of 5 batches are 3, not the 4 that 3.0000000000000004 rounds up to.
    share = admitted_share(config.pacing, tau, config.pacing_start)
    admitted = max(1, math.ceil(batches * share - 1e-9))
    return min(examples, admitted * config.batch_size)


def easy_first(difficulty: Tensor) -> list[int]:
    """Indices of the examples by ascending difficulty; equals stay in their order."""
    order: list[int] = torch.argsort(difficulty, stable=True).tolist()
    return order


def order_of_epoch(
    admitted: Sequence[int], examples: int, seed: int, *, ordered: bool
) -> Callable[[int], Sequence[int]]:
    """Epoch -> indices: the admitted ones, in the order in which the plain loop would shuffle all."""
    if ordered:
        return lambda epoch: admitted
    among = set(admitted)
    return lambda epoch: [index for index in epoch_order(seed, epoch, examples) if index in among]
