"""Update schemas: the dtype and shape of every tensor that an update must have.

`plan` writes the schema into its instruction as the fact `expects`. The web process checks headers against it
(`federated.payloads.header.check_expected`), the server half checks tensors.
A row is `{"dtype", "shape" | "max_shape"}`. With `"in_norm": false` the tensor is no change of the model. It does not
count in the norm of the update, and only the algorithm limits its values.
"""

from typing import Any

import torch

from federated.contract import UpdateRefused
from federated.payloads.payload import Payload, stored_name
from federated.payloads.schema import first_difference


def schema_like(tensors: Payload, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """The schema of an update with the names and shapes of `tensors`, all of one dtype."""
    return {name: {"dtype": stored_name(dtype), "shape": list(tensors.shape(name))} for name in tensors}


def check_update(instruction: Payload, update: Payload) -> None:
    """Raise UpdateRefused for the first tensor that is missing, unknown, or of another dtype or shape."""
    tensors = ((name, update.dtype(name), update.shape(name)) for name in update)
    difference = first_difference(tensors, instruction.facts["expects"])
    if difference is not None:
        raise UpdateRefused(difference.tensor, difference.reason)
