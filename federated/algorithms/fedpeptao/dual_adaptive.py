"""The server's side of FedPepTAO's adaptive optimisation: momentum of what the mean update changes by, and control
variates against client drift.

For one tensor, all float64. w: value sent; w_k: value of client k after K_k local steps at rate eta; p_k: its share
of the weights; c_k: its control variate; c: their running mean over all registered clients.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from federated.algorithms.fedpeptao.config import FedPepTAOConfig


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server has of one client: K_k, `change` w_k - w, and `variate` c_k before this round (None: zeros)."""

    steps: int
    change: Tensor
    variate: Tensor | None


@dataclass(frozen=True, slots=True)
class Moments:
    """What the round before left of a tensor: `momentum` v, and `drift`, w - mean of w_k."""

    momentum: Tensor
    drift: Tensor


def server_rate(config: FedPepTAOConfig, number: int) -> float:
    """The server's rate in train round `number`, from 1: decays each round down to the floor; 0 stays 0."""
    if config.server_lr == 0:
        return 0.0
    return max(config.server_lr * config.server_lr_decay ** (number - 1), config.server_lr_floor)


def next_variate(config: FedPepTAOConfig, answer: Answer, control: Tensor) -> Tensor:
    """c_k of a client that answered.

    scaffold2: `c_k - c + (w - w_k) / (K_k eta)` (SCAFFOLD's second option). avg_grad: `(w - w_k) / (K_k eta)`, the
    mean local step: devices do not correct their steps by `c - c_k` here, so it needs no correction back.
    """
    mean_step = -answer.change.double() / (answer.steps * config.learning_rate)
    if config.cv_update == "avg_grad":
        return mean_step
    before = torch.zeros_like(control) if answer.variate is None else answer.variate.double()
    return before - control + mean_step


def next_control(config: FedPepTAOConfig, answers: Sequence[Answer], control: Tensor, registered: int) -> Tensor:
    """`c + |S| / C * sum(K_k (c_k' - c_k)) / sum(K_k)` over the S clients that answered, of C registered."""
    moved = torch.zeros_like(control)
    for answer in answers:
        change = next_variate(config, answer, control)
        if answer.variate is not None:
            change = change - answer.variate.double()
        moved += answer.steps * change
    every_step = sum(answer.steps for answer in answers)
    return control + min(1.0, len(answers) / registered) * moved / every_step


def server_step(
    config: FedPepTAOConfig,
    rate: float,
    mean: Tensor,
    drift: Tensor,
    before: Moments,
    corrections: Iterable[tuple[float, Tensor]],
) -> tuple[Tensor, Tensor]:
    """The next value and momentum, from the second round on.

    mean: `sum(p_k w_k)`; drift: w - mean; `corrections`: p_k and `c - c_k` of each client, both after their update.
    Independent: `v = beta v + (1 - beta) g + sum(p_k (c - c_k))`, value `mean - rate v`. Chained: v and the value go
    through that step for one client after the other, each with its own correction, and their means over p_k are kept.
    """
    beta = config.server_beta
    gradient = before.drift - drift if config.server_grad == "diff" else drift
    pushed = (1 - beta) * gradient
    if config.server_mode == "independent":
        momentum = beta * before.momentum + pushed
        for share, correction in corrections:
            momentum += share * correction
        return mean - rate * momentum, momentum
    walked, momentum = mean, before.momentum
    value, velocity = torch.zeros_like(mean), torch.zeros_like(mean)
    for share, correction in corrections:
        momentum = beta * momentum + pushed + correction
        walked = walked - rate * momentum
        value += share * walked
        velocity += share * momentum
    return value, velocity
