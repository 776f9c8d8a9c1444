"""Comparison of tensors with an update schema. A row of the schema fixes the dtype and shape of one tensor.

A row is `{"dtype": "F32", "shape": [8, 384]}`, with `max_shape` instead where an update may be smaller.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Difference:
    """A tensor that differs from the schema, and the reason."""

    tensor: str
    reason: str


def first_difference(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], schema: Mapping[str, Mapping[str, Any]]
) -> Difference | None:
    """The first tensor by name that is missing, unknown, or of another dtype or shape; None if all fit.

    `tensors`: name, dtype (safetensors name) and shape of each.
    """
    layouts = {name: (dtype, shape) for name, dtype, shape in tensors}
    for name in sorted(schema.keys() | layouts.keys()):
        if name not in layouts:
            return Difference(name, "is missing")
        if name not in schema:
            return Difference(name, "is not expected in this update")
        reason = _layout_difference(*layouts[name], schema[name])
        if reason is not None:
            return Difference(name, reason)
    return None


def _layout_difference(dtype: str, shape: tuple[int, ...], row: Mapping[str, Any]) -> str | None:
    if dtype != row["dtype"]:
        return f"has dtype {dtype}, expected {row['dtype']}"
    if "shape" in row and list(shape) != list(row["shape"]):
        return f"has shape {list(shape)}, expected {list(row['shape'])}"
    if "max_shape" in row:
        bound = list(row["max_shape"])
        if len(bound) != len(shape) or any(n > m for n, m in zip(shape, bound, strict=True)):
            return f"has shape {list(shape)}, at most {bound} is allowed"
    return None
