"""Server optimizers for the mean update: FedOpt (Reddi et al., "Adaptive Federated Optimization", ICLR 2021).

x: current value, d: weighted mean of the updates, m: first moment, v: second moment, all of one shape. In the
paper's algorithm 2, d is the pseudo-gradient, there is no bias correction, and v starts at tau squared.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from federated.algorithms.fedavg.config import FedAvgConfig

MOMENTUM = "momentum"
SECOND = "second"


def moments(config: FedAvgConfig) -> dict[str, float]:
    """Names of the moments that the optimizer keeps of each tensor, with their initial values."""
    if config.server_optimizer == "none":
        return {}
    if config.server_optimizer == "momentum":
        return {MOMENTUM: 0.0}
    return {MOMENTUM: 0.0, SECOND: config.server_tau**2}


def server_step(
    config: FedAvgConfig, current: Tensor, mean: Tensor, old_moments: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Next value and moments of one tensor, float64. `mean` is float64.

    momentum (Hsu et al. 2019): m = b1 m + d, x += lr m. The adaptive ones: m = b1 m + (1 - b1) d,
    x += lr m / (sqrt(v) + tau), with Adagrad's v += d^2, Adam's v = b2 v + (1 - b2) d^2, and
    Yogi's v -= (1 - b2) d^2 sign(v - d^2).
    """
    rate, (beta, second_beta) = config.server_learning_rate, config.server_betas
    momentum = beta * old_moments[MOMENTUM].double()
    if config.server_optimizer == "momentum":
        momentum += mean
        return current.double() + rate * momentum, {MOMENTUM: momentum}
    momentum += (1 - beta) * mean
    second = _second_moment(config.server_optimizer, old_moments[SECOND].double(), mean * mean, second_beta)
    step = rate * momentum / (second.sqrt() + config.server_tau)
    return current.double() + step, {MOMENTUM: momentum, SECOND: second}


def _second_moment(optimizer: str, second: Tensor, square: Tensor, beta: float) -> Tensor:
    if optimizer == "adagrad":
        return second + square
    if optimizer == "adam":
        return beta * second + (1 - beta) * square
    return second - (1 - beta) * square * torch.sign(second - square)
