"""How far two payloads are apart that should be the same."""

import math

import torch
from torch import Tensor

from federated.payloads.payload import Payload


def largest_difference(made: Payload, kept: Payload) -> float:
    """Largest difference in any tensor, relative to the largest value of the kept one.

    Infinity where facts, names, shapes or dtypes differ, or a number is not finite.
    """
    if dict(made.facts) != dict(kept.facts) or list(made) != list(kept):
        return math.inf
    return max((_relative(made[name], kept[name]) for name in kept), default=0.0)


def _relative(made: Tensor, kept: Tensor) -> float:
    if made.shape != kept.shape or made.dtype != kept.dtype:
        return math.inf
    if torch.equal(made, kept):
        return 0.0
    largest = kept.double().abs().max()
    difference = float((made.double() - kept.double()).abs().max() / largest)
    return difference if math.isfinite(difference) else math.inf
