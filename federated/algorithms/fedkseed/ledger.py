"""Weights from a FedKSeed ledger, for the export of LoRA and for `federated.merge`.

A ledger is the tensor `accumulators` (K,) float32 and facts: `seed`, `directions`, `candidates`,
`directions_digest`, `changed` (names and shapes of the base's tensors that moved), `started` (`TensorFacts` of those
that the base lacks or that never moved), `moved` (names of the latter that moved), and the facts of every ledger.
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
    """Differences of the base's tensors and values of the others, each computed when it is read.

    Raises LedgerInvalid if this machine's directions differ from the federation's, or if a fact is missing.
    """
    facts = ledger.facts
    try:
        kind, count, seed = facts["directions"], int(facts["candidates"]), int(facts["seed"])
        shapes = {row["name"]: tuple(row["shape"]) for row in facts["changed"]}
        specs = [TensorFacts.model_validate(row) for row in facts["started"]]
        moved_names = set(facts["moved"])
        expected_digest = facts["directions_digest"]
        accumulators = ledger["accumulators"]
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerInvalid(f"the ledger lacks {error}") from None
    if tuple(accumulators.shape) != (count,):
        raise LedgerInvalid(f"tensor 'accumulators' has shape {list(accumulators.shape)}, expected [{count}]")
    digest = probe_digest(kind, count, _CPU)
    if digest != expected_digest:
        raise LedgerInvalid(
            f"the {kind} directions of this machine differ: probe digest {digest}, expected {expected_digest}"
        )
    all_directions = directions(kind, seed, count)
    differences: dict[str, Tensor | LazyTensor] = {
        name: LazyTensor(torch.float32, shape, partial(_difference, all_directions, accumulators, name, shape))
        for name, shape in shapes.items()
    }
    values: dict[str, Tensor | LazyTensor] = {}
    for tensor in specs:
        read: Any = partial(start, seed, tensor)
        if tensor.name in moved_names:
            read = partial(_value, all_directions, accumulators, seed, tensor)
        values[tensor.name] = LazyTensor(torch.float32, tensor.shape, read)
    return LedgerWeights(Payload(differences), Payload(values))


def _difference(all_directions: Directions, accumulators: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
    if not accumulators.any():
        return torch.zeros(shape)
    field = all_directions.over({name: math.prod(shape)}, _CPU)
    return -field.combination(name, accumulators).cpu().reshape(shape)


def _value(all_directions: Directions, accumulators: Tensor, seed: int, tensor: TensorFacts) -> Tensor:
    return start(seed, tensor) + _difference(all_directions, accumulators, tensor.name, tensor.shape)
