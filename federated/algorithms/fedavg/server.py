"""The coordinator's half of federated averaging.

State, all float32: the current value of each travelling tensor under its canonical name, and beside it
`NAME/momentum`, `NAME/second`: moments of the server's optimiser;
`NAME/frozen`: a value of the initial adapter that nobody trains, sent to clients since no seed makes it;
`NAME/base`: the base model's value of a tensor that travels as a difference, told by the first cohort, for export.
Facts: `seed`, `seeded` (tensors that never travel and stand in the adapter at their seeded start), `frozen` (names
the clients must not train), `differences` (names that travel as a difference from the base).
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from federated.algorithms.fedavg.config import FedAvgConfig
from federated.algorithms.fedavg.server_optimizers import moments, server_step
from federated.contract import Adapter, AnyTrainable, ClientFacts, ClientUpdate, Outcome, RoundFacts
from federated.expects import expects_like, refuse_unexpected
from federated.maths.averaging import Recent, weighted_sum
from federated.maths.starts import seeded_values, start
from federated.payload import LazyTensor, Payload
from federated.trainable import ModelFacts, TensorFacts

_UPLOAD_DTYPES = {"float32": "F32", "bfloat16": "BF16"}
_FACTORS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}
_FROZEN = "/frozen"
_BASE = "/base"
# A client's metrics that make sense as a mean over clients, and what they are called in the round's.
_CLIENT_METRICS = {"loss": "train_loss", "accuracy": "train_accuracy", "update_norm": "update_norm"}


class FedAvgServer:
    """Next value = current value + server optimiser (mean of the updates, weighted by examples trained on)."""

    def __init__(self, config: FedAvgConfig, trainable: AnyTrainable) -> None:
        self._config = config

    def start(self, model: ModelFacts, seed: int, initial: Payload | None) -> Payload:
        """The seeded starts, or the tensors of `initial` where it has them. Raises ValueError naming a misfit."""
        given = dict(initial or {})
        known = {tensor.name: tensor for tensor in (*model.tensors, *model.seeded)}
        for name, value in given.items():
            _check_initial(name, value, known.get(name))
        frozen = [tensor for tensor in model.tensors if self._config.freeze_a and _is_random_factor(tensor)]
        frozen_names = {tensor.name for tensor in frozen}
        tensors: dict[str, Tensor | LazyTensor] = {}
        for tensor in model.tensors:
            if tensor.name not in frozen_names:
                tensors |= self._first(tensor, given.get(tensor.name), seed)
        fixed = (*frozen, *model.seeded)
        tensors |= {tensor.name + _FROZEN: given[tensor.name].float() for tensor in fixed if tensor.name in given}
        seeded = [tensor.model_dump(mode="json") for tensor in fixed if tensor.name not in given]
        differences = [tensor.name for tensor in model.tensors if tensor.initialisation.kind == "base"]
        facts = {"seed": seed, "seeded": seeded, "frozen": sorted(frozen_names), "differences": differences}
        return Payload(tensors, facts)

    def plan(self, state: Payload, clients: Sequence[ClientFacts], step: RoundFacts) -> Mapping[int, Payload]:
        """The current values, the same for all, and nothing of the server's optimiser."""
        current = Payload({name: state.lazy(name) for name in _travelling(state)})
        sent = [name for name in state if "/" not in name or name.endswith(_FROZEN)]
        expects = expects_like(current, _UPLOAD_DTYPES[self._config.upload_dtype])
        for name in state.facts["differences"]:
            if name + _BASE not in state:
                expects[name + _BASE] = {"dtype": "F32", "shape": list(state.shape(name)), "in_norm": False}
        facts = {"expects": expects, "frozen": state.facts["frozen"]}
        instruction = Payload({name: state.lazy(name) for name in sent}, facts)
        return {client.ordinal: instruction for client in clients}

    def check(self, instruction: Payload, update: Payload) -> None:
        """Names, dtypes and shapes must be those of the instruction's `expects`. Raises UpdateRefused."""
        refuse_unexpected(instruction, update)

    def aggregate(self, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        """Tensor by tensor over all clients, when the next state is written or read."""
        ordered = sorted(updates, key=lambda update: update.ordinal)
        averaged = Recent(partial(self._averaged, state, ordered))
        tensors: dict[str, LazyTensor] = {}
        for name in state:
            if name.endswith((_FROZEN, _BASE)):
                tensors[name] = state.lazy(name)
            else:
                tensors[name] = LazyTensor(torch.float32, state.shape(name), partial(_of_group, averaged, name))
        # Clients with another base are out before they train, so the first one's word serves for all.
        told = {name: ordered[0].payload.lazy(name) for name in ordered[0].payload if name.endswith(_BASE)}
        return Outcome(Payload({**tensors, **told}, state.facts), _metrics(ordered))

    def join(self, state: Payload, parts: Sequence[Outcome], step: RoundFacts) -> Outcome:
        """The shards' tensors side by side; a tensor's moments lie in its own shard."""
        tensors: dict[str, LazyTensor] = {}
        for part in parts:
            tensors |= {name: part.state.lazy(name) for name in part.state}
        return Outcome(Payload(tensors, state.facts), parts[0].metrics)

    def export(self, state: Payload) -> Adapter:
        """Current values, and the seeded or given ones that never travelled; opens in PEFT.

        Raises ValueError before the first round if a tensor travels as a difference.
        """
        values = {name: _absolute(state, name) for name in _travelling(state)}
        seeded = seeded_values(state.facts["seed"], state.facts["seeded"])
        given = {name.removesuffix(_FROZEN): state[name] for name in state if name.endswith(_FROZEN)}
        return Adapter("peft", {**values, **seeded, **given})

    def _first(self, tensor: TensorFacts, given: Tensor | None, seed: int) -> dict[str, Tensor | LazyTensor]:
        value = LazyTensor(torch.float32, tensor.shape, partial(start, seed, tensor))
        kept = {
            f"{tensor.name}/{moment}": LazyTensor(
                torch.float32, tensor.shape, partial(torch.full, tensor.shape, first)
            )
            for moment, first in moments(self._config).items()
        }
        return {tensor.name: value if given is None else given.float(), **kept}

    def _averaged(self, state: Payload, updates: Sequence[ClientUpdate], name: str) -> dict[str, Tensor]:
        tensors = [update.payload.lazy(name) for update in updates]
        weights = [update.weight for update in updates]
        total = math.fsum(weights)
        if self._config.server_optimizer == "none":
            divisor = total / self._config.server_learning_rate
            return {name: weighted_sum(tensors, weights, divisor=divisor, base=state.lazy(name))}
        mean = weighted_sum(tensors, weights, divisor=total, dtype=torch.float64)
        kept = {moment: state[f"{name}/{moment}"] for moment in moments(self._config)}
        value, next_moments = server_step(self._config, state[name], mean, kept)
        named = {f"{name}/{moment}": tensor for moment, tensor in next_moments.items()}
        return {key: tensor.float() for key, tensor in {name: value, **named}.items()}


def _of_group(averaged: Recent[dict[str, Tensor]], name: str) -> Tensor:
    return averaged(name.partition("/")[0])[name]


def _absolute(state: Payload, name: str) -> Tensor:
    if name not in state.facts["differences"]:
        return state[name]
    if name + _BASE not in state:
        raise ValueError(f"tensor {name!r} is a difference, and no client has told its base value yet")
    return (state[name + _BASE].double() + state[name].double()).float()


def _travelling(state: Payload) -> list[str]:
    return [name for name in state if "/" not in name]


def _is_random_factor(tensor: TensorFacts) -> bool:
    # Of an embedding's factors PEFT starts B at random and A at zero, the other way round than elsewhere.
    return tensor.initialisation.kind in ("uniform", "normal") and not _FACTORS.isdisjoint(tensor.name.split("."))


def _check_initial(name: str, value: Tensor, tensor: TensorFacts | None) -> None:
    if tensor is None:
        raise ValueError(f"initial adapter: tensor {name!r} is not one of this model's")
    if tuple(value.shape) != tensor.shape:
        shape = list(value.shape)
        raise ValueError(f"initial adapter: tensor {name!r} has shape {shape}, expected {list(tensor.shape)}")
    if tensor.initialisation.kind == "base":
        raise ValueError(f"initial adapter: tensor {name!r} is a value, but it travels as a difference from the base")


def _metrics(updates: Sequence[ClientUpdate]) -> dict[str, float]:
    metrics: dict[str, Any] = {}
    for ours, name in _CLIENT_METRICS.items():
        told = [(update.weight, update.metrics[ours]) for update in updates if ours in update.metrics]
        if told:
            metrics[name] = math.fsum(w * value for w, value in told) / math.fsum(w for w, _ in told)
    return metrics
