"""Update schemas: the dtype and shape of every tensor that an update must have.

`plan` writes the schema into its instruction as the fact `expects`. The web process checks headers against it
(`federated.payloads.header.check_expected`), the server half checks tensors.
A row is `{"dtype", "shape" | "max_shape"}`. With `"in_norm": false` the tensor is no change of the model. It does not
count in the norm of the update, and only the algorithm limits its values.
"""

from collections.abc import Mapping
from typing import Any

import torch

from federated.contract import UpdateRefused
from federated.payloads.payload import Payload, stored_name


def schema_like(tensors: Payload, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """The schema of an update with the names and shapes of `tensors`, all of one dtype."""
    return {name: {"dtype": stored_name(dtype), "shape": list(tensors.shape(name))} for name in tensors}


def check_update(instruction: Payload, update: Payload) -> None:
    """Raise UpdateRefused for the first tensor that is missing, unknown, or of another dtype or shape."""
    schema: Mapping[str, Mapping[str, Any]] = instruction.facts["expects"]
    for name in sorted(schema.keys() | set(update)):
        if name not in schema:
            raise UpdateRefused(name, "is not expected in this update")
        if name not in update:
            raise UpdateRefused(name, "is missing")
        _check_tensor(name, update.dtype(name), update.shape(name), schema[name])


def _check_tensor(name: str, dtype: str, shape: tuple[int, ...], row: Mapping[str, Any]) -> None:
    if dtype != row["dtype"]:
        raise UpdateRefused(name, f"has dtype {dtype}, expected {row['dtype']}")
    if "shape" in row and list(shape) != list(row["shape"]):
        raise UpdateRefused(name, f"has shape {list(shape)}, expected {list(row['shape'])}")
    bound = row.get("max_shape")
    if bound is None:
        return
    if len(bound) != len(shape) or any(n > m for n, m in zip(shape, bound, strict=True)):
        raise UpdateRefused(name, f"has shape {list(shape)}, at most {list(bound)} is allowed")
