"""Checks of the numbers in client updates and in their aggregates: finite, and small enough to be summed."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from federated.payloads.payload import LazyTensor, Payload

# Far above any useful change of a weight. Sums, products and squares of such numbers stay with_finite_checks.
MAX_VALUE = 1e6


class UnsafeUpdate(ValueError):
    """An update whose numbers must not be aggregated. `code` is stable, `tensor` the name of the tensor at fault."""

    def __init__(self, code: str, tensor: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.tensor = tensor


class NotFinite(ArithmeticError):
    """NaN or infinity in the aggregate of finite updates. The text names the tensor."""


def check_update_norm(expects: Mapping[str, Mapping[str, Any]], update: Payload, max_norm: float | None) -> float:
    """L2 norm of an update, over the tensors that the instruction's schema `expects` counts in it.

    Raises UnsafeUpdate for NaN or infinity in any tensor, for a value above MAX_VALUE in one that counts, and for a
    norm above `max_norm`.
    """
    squares, largest = 0.0, (0.0, "")
    for name in update:
        norm = float(torch.linalg.vector_norm(update[name].reshape(-1).to(torch.float64)))
        if not math.isfinite(norm):
            raise UnsafeUpdate("update_not_finite", name, f"Tensor {name!r} holds NaN or infinity.")
        if expects.get(name, {}).get("in_norm", True):
            if norm > MAX_VALUE:  # no value is larger than the norm
                _check_size(name, update[name])
            squares += norm * norm
            largest = max(largest, (norm, name))
    norm = math.sqrt(squares)
    if max_norm is not None and norm > max_norm:
        detail = f"The update's norm is {norm:.6g}, at most {max_norm:g} is allowed (max_update_norm)."
        raise UnsafeUpdate("update_norm", largest[1], f"{detail} The largest tensor is {largest[1]!r}.")
    return norm


def with_finite_checks(payload: Payload) -> Payload:
    """The same tensors, unread. Reading one that has NaN or infinity raises NotFinite."""
    return Payload({name: _with_finite_check(name, payload.lazy(name)) for name in payload}, payload.facts)


def check_finite(name: str, value: Tensor) -> None:
    """Raises NotFinite for NaN or infinity."""
    if value.is_floating_point() and value.numel():
        smallest, largest = torch.aminmax(value)
        if not (math.isfinite(smallest) and math.isfinite(largest)):
            raise NotFinite(f"tensor {name!r} came out with NaN or infinity")


def _with_finite_check(name: str, tensor: LazyTensor) -> LazyTensor:
    def read() -> Tensor:
        value = tensor.read()
        check_finite(name, value)
        return value

    return LazyTensor(tensor.dtype, tensor.shape, read)


def _check_size(name: str, value: Tensor) -> None:
    size = float(value.to(torch.float64).abs().max())
    if size > MAX_VALUE:
        detail = f"Tensor {name!r} holds a value of size {size:.6g}, at most {MAX_VALUE:g} is allowed."
        raise UnsafeUpdate("update_too_large", name, detail)
