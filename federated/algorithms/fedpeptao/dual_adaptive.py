"""Server optimizer of FedPepTAO: momentum of the mean update's change, and control variates against client drift.

Notation, for one tensor, all float64:
w: value that was sent. w_k: value of client k after K_k local steps at rate eta. p_k: its share of the weights.
c_k: its control variate. c: running mean of the c_k over all registered clients.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from federated.algorithms.fedpeptao.config import FedPepTAOConfig


@dataclass(frozen=True, slots=True)
class ClientUpdateFacts:
    """One client's part in a step: K_k, `change` w_k - w, and `variate` c_k before this round (None: zeros)."""

    steps: int
    change: Tensor
    variate: Tensor | None


@dataclass(frozen=True, slots=True)
class Moments:
    """A tensor's moments from the previous round: `momentum` v, and `drift`, w - mean of w_k."""

    momentum: Tensor
    drift: Tensor


def server_rate(config: FedPepTAOConfig, number: int) -> float:
    """The server's rate in train round `number`, from 1: decays each round down to the floor. 0 stays 0."""
    if config.server_lr == 0:
        return 0.0
    return max(config.server_lr * config.server_lr_decay ** (number - 1), config.server_lr_floor)


def next_variate(config: FedPepTAOConfig, client: ClientUpdateFacts, control: Tensor) -> Tensor:
    """The next c_k of a client of the cohort.

    scaffold2: `c_k - c + (w - w_k) / (K_k eta)` (SCAFFOLD's second option). avg_grad: `(w - w_k) / (K_k eta)`, the
    mean local step. It needs no correction, because clients do not correct their steps by `c - c_k` here.
    """
    mean_step = -client.change.double() / (client.steps * config.learning_rate)
    if config.cv_update == "avg_grad":
        return mean_step
    before = torch.zeros_like(control) if client.variate is None else client.variate.double()
    return before - control + mean_step


def next_control(
    config: FedPepTAOConfig, clients: Sequence[ClientUpdateFacts], control: Tensor, client_count: int
) -> Tensor:
    """`c + |S| / C * sum(K_k (c_k' - c_k)) / sum(K_k)` over the S clients of the cohort, of C registered."""
    total_change = torch.zeros_like(control)
    for client in clients:
        change = next_variate(config, client, control)
        if client.variate is not None:
            change = change - client.variate.double()
        total_change += client.steps * change
    total_steps = sum(client.steps for client in clients)
    return control + min(1.0, len(clients) / client_count) * total_change / total_steps


def server_step(
    config: FedPepTAOConfig,
    rate: float,
    mean: Tensor,
    drift: Tensor,
    before: Moments,
    corrections: Iterable[tuple[float, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Next value and momentum, from the second round on.

    mean: `sum(p_k w_k)`. drift: w - mean. corrections: p_k and `c - c_k` of each client, both after their update.
    Independent: `v = beta v + (1 - beta) g + sum(p_k (c - c_k))`, value `mean - rate v`.
    Chained: v and the value take that step for each client in turn with its own correction, and their means over p_k
    are the result.
    """
    beta = config.server_beta
    gradient = before.drift - drift if config.server_grad == "diff" else drift
    gradient_part = (1 - beta) * gradient
    if config.server_mode == "independent":
        momentum = beta * before.momentum + gradient_part
        for share, correction in corrections:
            momentum += share * correction
        return mean - rate * momentum, momentum
    position, momentum = mean, before.momentum
    value, velocity = torch.zeros_like(mean), torch.zeros_like(mean)
    for share, correction in corrections:
        momentum = beta * momentum + gradient_part + correction
        position = position - rate * momentum
        value += share * position
        velocity += share * momentum
    return value, velocity
