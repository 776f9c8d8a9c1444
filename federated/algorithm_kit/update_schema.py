"""What an instruction says of the update it wants: the table `expects`, written by `plan` and held against twice.

The web process checks a header against the table (`federated.payloads.header.check_expected`), a server half checks
the opened update.
A row is `{"dtype", "shape" | "max_shape"}`; `"in_norm": false` in it says that the tensor is no change of the
model: it does not count in the norm of the update, and no bound holds for its values but the algorithm's own.
"""

from collections.abc import Mapping
from typing import Any

import torch

from federated.contract import UpdateRefused
from federated.payloads.payload import Payload, stored_name


def expects_like(tensors: Payload, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """The table for an update with the names and shapes of `tensors`, all of one dtype."""
    return {name: {"dtype": stored_name(dtype), "shape": list(tensors.shape(name))} for name in tensors}


def refuse_unexpected(instruction: Payload, update: Payload) -> None:
    """Raise UpdateRefused, naming the first tensor that is missing, unknown, or of another dtype or shape."""
    expects: Mapping[str, Mapping[str, Any]] = instruction.facts["expects"]
    for name in sorted(expects.keys() | set(update)):
        if name not in expects:
            raise UpdateRefused(name, "is not expected in this update")
        if name not in update:
            raise UpdateRefused(name, "is missing")
        _refuse_unlike(name, update.dtype(name), update.shape(name), expects[name])


def _refuse_unlike(name: str, dtype: str, shape: tuple[int, ...], row: Mapping[str, Any]) -> None:
    if dtype != row["dtype"]:
        raise UpdateRefused(name, f"has dtype {dtype}, expected {row['dtype']}")
    if "shape" in row and list(shape) != list(row["shape"]):
        raise UpdateRefused(name, f"has shape {list(shape)}, expected {list(row['shape'])}")
    bound = row.get("max_shape")
    if bound is None:
        return
    if len(bound) != len(shape) or any(n > m for n, m in zip(shape, bound, strict=True)):
        raise UpdateRefused(name, f"has shape {list(shape)}, at most {list(bound)} is allowed")
