"""Sparse training of private layers: the rows of their factors with the most Fisher information.

F_t = gamma F_(t-1) + (1 - gamma) F~_t over the batches of a short warm-up, where F~_t is the mean over a batch's
examples (Liu et al., EMNLP 2024). A neuron is an output row of a factor, and its importance is the sum of F over it.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from federated.algorithm_kit.local_training import train
from federated.algorithms.fibecfed.config import FibecFedConfig
from federated.algorithms.fibecfed.fisher import factor_maps
from federated.algorithms.fibecfed.restoration import temporary_changes
from federated.maths.per_example import observe, squared_rows
from federated.session import TrainingSession


def choose_rows(session: TrainingSession, config: FibecFedConfig, names: Sequence[str]) -> dict[str, Tensor]:
    """Masks (rows,), bool, of the rows to train in the factors `names`. Restores the session after its warm-up."""
    share = config.local_share
    shapes = {name: session.trainables[name].shape for name in names}
    if share in (0.0, 1.0) or not names:
        return {name: torch.full(shape[:1], share == 1.0) for name, shape in shapes.items()}
    with temporary_changes(session):
        importance = row_importance(session, config, names)
    return {name: top_rows(importance[name], share) for name in names}


def row_importance(session: TrainingSession, config: FibecFedConfig, names: Sequence[str]) -> dict[str, Tensor]:
    """F summed over each row, (rows,) float32 on the CPU, after one warm-up from the current values. Trains."""
    importance = {name: torch.zeros(len(session.trainables[name]), device=session.device) for name in names}

    def add_squares(name: str, inputs: Tensor, gradients: Tensor) -> None:
        # The loss is a mean over n examples, so each gradient has a factor 1/n: mean of squares = n * sum.
        squares = squared_rows(inputs, gradients).sum(dim=0) * len(inputs)
        importance[name].mul_(config.fisher_momentum).add_(squares, alpha=1 - config.fisher_momentum)

    warmup = config.model_copy(update={"local_steps": None, "local_epochs": config.fisher_epochs})
    with observe(factor_maps(session, names), add_squares):
        train(session, warmup)
    return {name: values.cpu() for name, values in importance.items()}


def top_rows(importance: Tensor, share: float) -> Tensor:
    """Mask (rows,), bool: the `share` of rows with the most importance, rounded. Of equal rows the first is taken."""
    count = math.floor(share * len(importance) + 0.5)
    mask = torch.zeros(len(importance), dtype=torch.bool)
    mask[torch.argsort(importance, descending=True, stable=True)[:count]] = True
    return mask


def update_masks(session: TrainingSession, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks of the update for the training loop. Factors that are trained in full or not at all have none."""
    return {
        name: mask[:, None].expand(session.trainables[name].shape)
        for name, mask in rows.items()
        if mask.any() and not mask.all()
    }
