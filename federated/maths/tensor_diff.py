"""Numerical difference between two payloads that should be equal."""

import math

import torch
from torch import Tensor

from federated.payloads.payload import Payload


def largest_difference(actual: Payload, reference: Payload) -> float:
    """Largest difference in any tensor, relative to the largest value of the reference tensor.

    Infinity if facts, names, shapes or dtypes differ, or a number is not finite.
    """
    if dict(actual.facts) != dict(reference.facts) or list(actual) != list(reference):
        return math.inf
    return max((_relative(actual[name], reference[name]) for name in reference), default=0.0)


def _relative(actual: Tensor, reference: Tensor) -> float:
    if actual.shape != reference.shape or actual.dtype != reference.dtype:
        return math.inf
    if torch.equal(actual, reference):
        return 0.0
    largest = reference.double().abs().max()
    difference = float((actual.double() - reference.double()).abs().max() / largest)
    return difference if math.isfinite(difference) else math.inf
