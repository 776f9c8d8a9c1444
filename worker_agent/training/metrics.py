"""Metrics of a classifier from its confusion counts, with their sources."""

import math

import torch
from torch import Tensor


def confusion(targets: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """(classes, classes) counts, int64: rows are the true classes."""
    cells = targets.long() * classes + predictions.long()
    return torch.bincount(cells.cpu(), minlength=classes * classes).reshape(classes, classes)


def accuracy(counts: Tensor) -> float:
    """Share of examples on the diagonal."""
    return float(counts.diagonal().sum()) / max(int(counts.sum()), 1)


def matthews(counts: Tensor) -> float:
    """Matthews correlation for any number of classes (Gorodkin 2004); 0 if one side has a single class."""
    cells = counts.double()
    total, right = cells.sum(), cells.diagonal().sum()
    true_sizes, predicted_sizes = cells.sum(1), cells.sum(0)
    spread = (total**2 - (predicted_sizes**2).sum()) * (total**2 - (true_sizes**2).sum())
    return float((right * total - true_sizes @ predicted_sizes) / math.sqrt(spread)) if spread > 0 else 0.0


def f1(counts: Tensor) -> float:
    """F1 of class 1 for two classes; for more, the mean over all classes that occur or are predicted (macro)."""
    cells = counts.double()
    right, sizes = cells.diagonal(), cells.sum(0) + cells.sum(1)
    each = torch.where(sizes > 0, 2 * right / sizes.clamp(min=1), 0.0)
    if len(cells) == 2:
        return float(each[1])
    present = sizes > 0
    return float(each[present].mean()) if bool(present.any()) else 0.0


METRICS = {"accuracy": accuracy, "matthews": matthews, "f1": f1}
