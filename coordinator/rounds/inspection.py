"""Inspection of an update's numbers before it counts: finite, of a size that can be summed, within the norm."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from coordinator.errors import Unprocessable
from federated.payload import Payload

# No change of a weight that trains anything is as large; sums, products and squares of such numbers stay finite.
MAX_VALUE = 1e6


def inspected_norm(expects: Mapping[str, Mapping[str, Any]], update: Payload, max_norm: float | None) -> float:
    """The update's L2 norm, of the tensors that the instruction's `expects` counts in it.

    Raises Unprocessable with the tensor's name for NaN or infinity in any tensor, for a value beyond MAX_VALUE in one
    that counts, and for a norm above `max_norm`.
    """
    squares, largest = 0.0, (0.0, "")
    for name in update:
        norm = _norm(update, name)
        if not math.isfinite(norm):
            raise Unprocessable("update_not_finite", f"Tensor {name!r} holds NaN or infinity.", tensor=name)
        if expects.get(name, {}).get("in_norm", True):
            if norm > MAX_VALUE:  # no value is larger than the norm
                _check_size(update, name)
            squares += norm * norm
            largest = max(largest, (norm, name))
    norm = math.sqrt(squares)
    if max_norm is not None and norm > max_norm:
        detail = f"The update's norm is {norm:.6g}, at most {max_norm:g} is allowed (max_update_norm)."
        raise Unprocessable("update_norm", f"{detail} The largest tensor is {largest[1]!r}.", tensor=largest[1])
    return norm


def _norm(update: Payload, name: str) -> float:
    return float(torch.linalg.vector_norm(update[name].reshape(-1).to(torch.float64)))


def _check_size(update: Payload, name: str) -> None:
    size = float(update[name].to(torch.float64).abs().max())
    if size > MAX_VALUE:
        detail = f"Tensor {name!r} holds a value of size {size:.6g}, at most {MAX_VALUE:g} is allowed."
        raise Unprocessable("update_too_large", detail, tensor=name)
