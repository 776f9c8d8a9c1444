"""Server half of FibecFed.

State, float32:
`NAME`: current value of a tensor that travels, under its canonical name. Before the choice of layers: of all trained
ones.
`NAME/base`, `NAME/frozen`: see `federated.algorithm_kit.shared_tensors`. The latter also for private factors of an
initial adapter.
`layer_scores/mean` (layers,): mean of the clients' scores, after the choice.
Facts: `phase`, `layers` (null, then those that travel), `candidates` (layers that are scored), `seed`, `seeded`
(tensors that never travel and have their start in the adapter), `factors` (before the choice, the same for each
layer's factors), `given` (before the choice, names of the initial adapter's factors), `frozen` (names that clients
must not train), `differences`.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from federated.algorithm_kit.shared_tensors import (
    FROZEN,
    UPLOAD_DTYPES,
    add_weighted_mean,
    base_value_schema,
    difference_names,
    factor_scale,
    initial_tensors,
    mean_metrics,
    reported_base_values,
    training_metrics,
    untrained_values,
    with_base,
)
from federated.algorithm_kit.update_schema import check_update, schema_like
from federated.algorithms.fibecfed.config import FibecFedConfig
from federated.algorithms.fibecfed.layer_choice import choose_layers
from federated.algorithms.fibecfed.layers import layer_tensors, rest_of_head
from federated.contract import (
    Adapter,
    AnyTrainable,
    ClientFacts,
    ClientUpdate,
    Outcome,
    RoundFacts,
    ServerHalf,
    UpdateRefused,
)
from federated.maths.averaging import weighted_sum
from federated.maths.initialization import start
from federated.payloads.payload import LazyTensor, Payload
from federated.trainable import Lora, ModelFacts, TensorFacts

LAYER_SCORES = "layer_scores"
KEPT_SHARE = "kept_share"

# Metrics of a client, in the preparation or a round, that are averaged over clients.
_CLIENT_METRICS = ("kept_spectrum", "kept_eigengap", "admitted_share")


class FibecFedServer(ServerHalf):
    """Chooses the layers by the mean of the clients' scores, then averages the tensors of those layers only."""

    def __init__(self, config: FibecFedConfig, trainable: AnyTrainable) -> None:
        if not isinstance(trainable, Lora):
            raise TypeError(f"fibecfed trains LoRA factors, not {trainable.kind!r}")
        self._config = config
        self._trainable = trainable

    def start(self, model: ModelFacts, seed: int, initial: Payload | None) -> Payload:
        """The seeded starts, or the tensors of `initial`, without a choice of layers.

        Raises FederationRefused naming a tensor that does not fit.
        """
        initial_values = initial_tensors(model, initial, partial(factor_scale, self._trainable))
        factors_by_layer = layer_tensors(model)
        train_whole_head = self._trainable.modules_to_save is not None or self._config.head == "all"
        frozen = set() if train_whole_head else set(rest_of_head(model))
        tensors: dict[str, Tensor | LazyTensor] = {}
        for tensor in model.tensors:
            if tensor.name not in frozen:
                seeded_start = LazyTensor(torch.float32, tensor.shape, partial(start, seed, tensor))
                tensors[tensor.name] = (
                    initial_values[tensor.name].float() if tensor.name in initial_values else seeded_start
                )
        untrained = [*(tensor for tensor in model.tensors if tensor.name in frozen), *model.seeded]
        tensors |= {
            tensor.name + FROZEN: initial_values[tensor.name].float()
            for tensor in untrained
            if tensor.name in initial_values
        }
        of_layers = {name for names in factors_by_layer.values() for name in names}
        facts = {
            "phase": "prepare",
            "layers": None,
            "candidates": list(factors_by_layer),
            "seed": seed,
            "seeded": [_as_fact(tensor) for tensor in untrained if tensor.name not in initial_values],
            "factors": {
                str(layer): [_as_fact(tensor) for tensor in model.tensors if tensor.name in set(names)]
                for layer, names in factors_by_layer.items()
            },
            "given": sorted(of_layers.intersection(initial_values)),
            "frozen": sorted(frozen),
            "differences": [name for name in difference_names(model) if name not in frozen],
        }
        return Payload(tensors, facts)

    def plan(self, state: Payload, clients: Sequence[ClientFacts], step: RoundFacts) -> Mapping[int, Payload]:
        """One instruction for all clients: to score, or the values that travel with the number of the round."""
        preparing = state.facts["layers"] is None
        facts = {"layers": state.facts["layers"], "frozen": state.facts["frozen"]}
        if preparing:
            # All tensors are at their seeded starts, except for those of an initial adapter.
            tensors = {name: state.lazy(name) for name in state if name.endswith(FROZEN)}
            tensors |= {name + FROZEN: state.lazy(name) for name in state.facts["given"]}
            expects = self._score_schema(len(state.facts["candidates"]))
            instruction = Payload(tensors, {**facts, "expects": expects})
        else:
            current = Payload({name: state.lazy(name) for name in _shared_names(state)})
            expects = schema_like(current, UPLOAD_DTYPES[self._config.upload_dtype])
            expects |= base_value_schema(state, state.facts["differences"])
            tensors = {
                name: state.lazy(name) for name in [*current, *(name for name in state if name.endswith(FROZEN))]
            }
            facts |= {"round": step.number, "rounds": step.rounds}
            instruction = Payload(tensors, {**facts, "expects": expects})
        return {client.ordinal: instruction for client in clients}

    def check(self, instruction: Payload, update: Payload) -> None:
        """Names, dtypes and shapes must match the schema, scores and shares their range. Raises UpdateRefused."""
        check_update(instruction, update)
        if LAYER_SCORES in update and bool((update[LAYER_SCORES] < 0).any()):
            raise UpdateRefused(LAYER_SCORES, "has a negative score")
        if KEPT_SHARE in update and not 0 <= float(update[KEPT_SHARE]) <= 1:
            raise UpdateRefused(KEPT_SHARE, "is outside of 0 to 1")

    def aggregate(self, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        """The choice of layers after the preparation, and in all other rounds means, tensor by tensor."""
        updates = sorted(updates, key=lambda update: update.ordinal)
        if state.facts["layers"] is None:
            return self._choose(state, updates)
        tensors: dict[str, Tensor | LazyTensor] = {name: state.lazy(name) for name in _auxiliary(state)}
        for name in _shared_names(state):
            tensors[name] = LazyTensor(
                torch.float32, state.shape(name), partial(add_weighted_mean, state, name, updates)
            )
        metrics = _means(updates) | {"layers": float(len(state.facts["layers"]))}
        return Outcome(Payload({**tensors, **reported_base_values(updates)}, state.facts), metrics)

    def export(self, state: Payload) -> Adapter:
        """The global adapter: current values of the tensors that travel, all others at their start.

        Raises FederationRefused before the first round if a tensor travels as a difference.
        """
        values = {name: with_base(state, name, state.facts["differences"]) for name in _shared_names(state)}
        return Adapter("peft", values | untrained_values(state))

    def _score_schema(self, layers: int) -> dict[str, dict[str, Any]]:
        row = {"dtype": "F32", "in_norm": False}
        expects = {LAYER_SCORES: {**row, "shape": [layers]}}
        return expects if self._config.layer_count == "fixed" else {**expects, KEPT_SHARE: {**row, "shape": [1]}}

    def _choose(self, state: Payload, updates: Sequence[ClientUpdate]) -> Outcome:
        """The state after the preparation, without private factors. The adapter has these at their start."""
        weights = [update.weight for update in updates]
        scores = [update.payload[LAYER_SCORES] for update in updates]
        means = weighted_sum(scores, weights, divisor=math.fsum(weights), dtype=torch.float64)
        share = self._share(updates)
        candidates = state.facts["candidates"]
        layers = choose_layers(self._config, dict(zip(candidates, means.tolist(), strict=True)), share)
        private = [row for layer in candidates if layer not in layers for row in state.facts["factors"][str(layer)]]
        names = {row["name"] for row in private}
        from_initial = names.intersection(state.facts["given"])
        tensors = {name: state.lazy(name) for name in state if name not in names}
        tensors |= {name + FROZEN: state.lazy(name) for name in from_initial}
        facts = {name: value for name, value in state.facts.items() if name not in ("factors", "given")}
        rows = [*state.facts["seeded"], *(row for row in private if row["name"] not in from_initial)]
        facts |= {"phase": "train", "layers": layers, "seeded": rows}
        next_state = Payload({**tensors, LAYER_SCORES + "/mean": means.float()}, facts)
        metrics = {"layers": float(len(layers)), "kept_share": share}
        return Outcome(next_state, metrics | _means(updates))

    def _share(self, updates: Sequence[ClientUpdate]) -> float:
        if self._config.layer_count == "fixed":
            return self._config.layer_share
        return math.fsum(float(update.payload[KEPT_SHARE]) for update in updates) / len(updates)


def _means(updates: Sequence[ClientUpdate]) -> dict[str, float]:
    names = {name: name for name in _CLIENT_METRICS}
    return training_metrics(updates) | mean_metrics(updates, names, [update.weight for update in updates])


def _shared_names(state: Payload) -> list[str]:
    return [name for name in state if "/" not in name]


def _auxiliary(state: Payload) -> list[str]:
    return [name for name in state if "/" in name]


def _as_fact(tensor: TensorFacts) -> dict[str, Any]:
    return tensor.model_dump(mode="json")
