"""What the scalars make of a model's tensors: for the export of LoRA, and for whoever applies a ledger to a base.

A ledger is the tensor `accumulators` (K,) float32 and facts: `seed`, `directions`, `candidates`,
`directions_digest`; `changed` (names and shapes of the base's tensors that moved), `started` (`TensorFacts` of those
that the base lacks or that never moved), `moved` (which of these did), beside the facts every ledger has.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from federated.contract import LedgerInvalid, LedgerWeights
from federated.maths.directions import Directions, directions, probe_digest
from federated.maths.initialization import start
from federated.payloads.payload import LazyTensor, Payload
from federated.trainable import TensorFacts

_CPU = torch.device("cpu")


def weights(ledger: Payload) -> LedgerWeights:
    """Differences of the base's tensors and values of the others, each made when it is asked for.

    Raises LedgerInvalid if this machine makes other directions than the federation did, or if a fact is missing.
    """
    facts = ledger.facts
    try:
        kind, count, seed = facts["directions"], int(facts["candidates"]), int(facts["seed"])
        changed = {row["name"]: tuple(row["shape"]) for row in facts["changed"]}
        started = [TensorFacts.model_validate(row) for row in facts["started"]]
        moved = set(facts["moved"])
        wanted = facts["directions_digest"]
        accumulators = ledger["accumulators"]
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerInvalid(f"the ledger lacks {error}") from None
    if tuple(accumulators.shape) != (count,):
        raise LedgerInvalid(f"tensor 'accumulators' has shape {list(accumulators.shape)}, expected [{count}]")
    found = probe_digest(kind, count, _CPU)
    if found != wanted:
        raise LedgerInvalid(f"this machine makes other {kind} directions: its probe is {found}, expected {wanted}")
    made = directions(kind, seed, count)
    differences: dict[str, Tensor | LazyTensor] = {
        name: LazyTensor(torch.float32, shape, partial(_difference, made, accumulators, name, shape))
        for name, shape in changed.items()
    }
    values: dict[str, Tensor | LazyTensor] = {}
    for tensor in started:
        read: Any = partial(start, seed, tensor)
        if tensor.name in moved:
            read = partial(_value, made, accumulators, seed, tensor)
        values[tensor.name] = LazyTensor(torch.float32, tensor.shape, read)
    return LedgerWeights(Payload(differences), Payload(values))


def _difference(made: Directions, accumulators: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
    if not accumulators.any():
        return torch.zeros(shape)
    field = made.over({name: math.prod(shape)}, _CPU)
    return -field.combination(name, accumulators).cpu().reshape(shape)


def _value(made: Directions, accumulators: Tensor, seed: int, tensor: TensorFacts) -> Tensor:
    return start(seed, tensor) + _difference(made, accumulators, tensor.name, tensor.shape)
