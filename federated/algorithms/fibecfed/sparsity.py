"""The part of a private layer that is trained: the rows of its factors with the most Fisher information.

F_t = gamma F_(t-1) + (1 - gamma) F~_t over the batches of a short warm-up, F~_t the mean over a batch's examples
(Liu et al., EMNLP 2024). A neuron is an output row of a factor; its importance is the sum of F over the row.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from federated.algorithm_kit.local_training import train
from federated.algorithms.fibecfed.config import FibecFedConfig
from federated.algorithms.fibecfed.fisher import factor_maps
from federated.maths.per_example import observe, squared_rows
from federated.session import TrainingSession


def chosen_rows(session: TrainingSession, config: FibecFedConfig, names: Sequence[str]) -> dict[str, Tensor]:
    """(rows,) bool for each of the factors `names`: which rows are trained. Trains: undo it afterwards."""
    share = config.local_share
    shapes = {name: session.trainables[name].shape for name in names}
    if share in (0.0, 1.0) or not names:
        return {name: torch.full(shape[:1], share == 1.0) for name, shape in shapes.items()}
    importance = row_importance(session, config, names)
    return {name: top_rows(importance[name], share) for name in names}


def row_importance(session: TrainingSession, config: FibecFedConfig, names: Sequence[str]) -> dict[str, Tensor]:
    """F summed over each row, (rows,) float32 on the CPU, after one warm-up of the factors as they are."""
    importance = {name: torch.zeros(len(session.trainables[name]), device=session.device) for name in names}

    def seen(name: str, inputs: Tensor, gradients: Tensor) -> None:
        # The loop's loss is a mean: of n examples each gradient is an n-th, and the mean of squares n times the sum.
        now = squared_rows(inputs, gradients).sum(dim=0) * len(inputs)
        importance[name].mul_(config.fisher_momentum).add_(now, alpha=1 - config.fisher_momentum)

    warmup = config.model_copy(update={"local_steps": None, "local_epochs": config.fisher_epochs})
    with observe(factor_maps(session, names), seen):
        train(session, warmup)
    return {name: values.cpu() for name, values in importance.items()}


def top_rows(importance: Tensor, share: float) -> Tensor:
    """(rows,) bool: the `share` of rows with the most importance, rounded; of equals the first."""
    kept = math.floor(share * len(importance) + 0.5)
    mask = torch.zeros(len(importance), dtype=torch.bool)
    mask[torch.argsort(importance, descending=True, stable=True)[:kept]] = True
    return mask


def update_masks(session: TrainingSession, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks of the update for the training loop; none for what is trained whole or not at all."""
    return {
        name: chosen[:, None].expand(session.trainables[name].shape)
        for name, chosen in rows.items()
        if chosen.any() and not chosen.all()
    }
