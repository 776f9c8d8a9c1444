"""The coordinator's half of FibecFed.

State, float32: the current value of each travelling tensor under its canonical name, before the choice of layers of
every trained one; `NAME/base` and `NAME/frozen` (see `federated.algorithm_kit.shared_tensors`), the latter also of
private factors that an initial adapter gave; after the choice `layer_scores/mean` (layers,), the clients' mean.
Facts: `phase`; `layers` (null, then those that travel); `candidates` (those scored); `seed`; `seeded` (tensors that
never travel and stand in the adapter at their start), `factors` (of each layer, the same of its factors);
`frozen` (names the clients must not train), `differences`.
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
    base_value_schema,
    difference_names,
    factor_scale,
    initial_tensors,
    mean_metrics,
    reported_base_values,
    training_metrics,
    untrained_values,
    weighted_mean,
    with_base,
)
from federated.algorithm_kit.update_schema import check_update, schema_like
from federated.algorithms.fibecfed.config import FibecFedConfig
from federated.algorithms.fibecfed.layer_choice import chosen_layers
from federated.algorithms.fibecfed.layers import layer_tensors, rest_of_head
from federated.contract import (
    Adapter,
    AnyTrainable,
    ClientFacts,
    ClientUpdate,
    Outcome,
    RoundFacts,
    UpdateRefused,
)
from federated.maths.averaging import weighted_sum
from federated.maths.initialization import start
from federated.payloads.payload import LazyTensor, Payload
from federated.trainable import Lora, ModelFacts, TensorFacts

LAYER_SCORES = "layer_scores"
KEPT_SHARE = "kept_share"

# A client's metrics of the preparation, and of a round, that make sense as a mean over clients.
_CLIENT_METRICS = ("kept_spectrum", "kept_eigengap", "admitted_share")


class FibecFedServer:
    """Chooses the layers from the mean of the clients' scores; then averages the tensors of those layers alone."""

    def __init__(self, config: FibecFedConfig, trainable: AnyTrainable) -> None:
        if not isinstance(trainable, Lora):
            raise TypeError(f"fibecfed trains LoRA factors, not {trainable.kind!r}")
        self._config = config
        self._trainable = trainable

    def start(self, model: ModelFacts, seed: int, initial: Payload | None) -> Payload:
        """The seeded starts, or the tensors of `initial`; no layer is chosen. Raises ValueError naming a misfit."""
        given = initial_tensors(model, initial, partial(factor_scale, self._trainable))
        layered = layer_tensors(model)
        named = self._trainable.modules_to_save is not None or self._config.head == "all"
        frozen = set() if named else set(rest_of_head(model))
        tensors: dict[str, Tensor | LazyTensor] = {}
        for one in model.tensors:
            if one.name not in frozen:
                made = LazyTensor(torch.float32, one.shape, partial(start, seed, one))
                tensors[one.name] = given[one.name].float() if one.name in given else made
        fixed = [*(one for one in model.tensors if one.name in frozen), *model.seeded]
        tensors |= {one.name + FROZEN: given[one.name].float() for one in fixed if one.name in given}
        of_layers = {name for names in layered.values() for name in names}
        facts = {
            "phase": "prepare",
            "layers": None,
            "candidates": list(layered),
            "seed": seed,
            "seeded": [_as_fact(one) for one in fixed if one.name not in given],
            "factors": {
                str(layer): [_as_fact(one) for one in model.tensors if one.name in set(names)]
                for layer, names in layered.items()
            },
            "given": sorted(of_layers.intersection(given)),
            "frozen": sorted(frozen),
            "differences": [name for name in difference_names(model) if name not in frozen],
        }
        return Payload(tensors, facts)

    def plan(self, state: Payload, clients: Sequence[ClientFacts], step: RoundFacts) -> Mapping[int, Payload]:
        """One instruction for all: score; or the values that travel, and which round it is."""
        preparing = state.facts["layers"] is None
        facts = {"layers": state.facts["layers"], "frozen": state.facts["frozen"]}
        if preparing:
            # Everything is at its seeded start, but for what an initial adapter gave.
            sent = {name: state.lazy(name) for name in state if name.endswith(FROZEN)}
            sent |= {name + FROZEN: state.lazy(name) for name in state.facts["given"]}
            expects = self._expected_scores(len(state.facts["candidates"]))
            instruction = Payload(sent, {**facts, "expects": expects})
        else:
            current = Payload({name: state.lazy(name) for name in _travelling(state)})
            expects = schema_like(current, UPLOAD_DTYPES[self._config.upload_dtype])
            expects |= base_value_schema(state, state.facts["differences"])
            sent = {name: state.lazy(name) for name in [*current, *(name for name in state if name.endswith(FROZEN))]}
            facts |= {"round": step.number, "rounds": step.rounds}
            instruction = Payload(sent, {**facts, "expects": expects})
        return {client.ordinal: instruction for client in clients}

    def check(self, instruction: Payload, update: Payload) -> None:
        """Names, dtypes and shapes as expected; scores and shares in their range. Raises UpdateRefused."""
        check_update(instruction, update)
        if LAYER_SCORES in update and bool((update[LAYER_SCORES] < 0).any()):
            raise UpdateRefused(LAYER_SCORES, "has a negative score")
        if KEPT_SHARE in update and not 0 <= float(update[KEPT_SHARE]) <= 1:
            raise UpdateRefused(KEPT_SHARE, "is no share from 0 to 1")

    def aggregate(self, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        """The choice of layers, once; then means, tensor by tensor."""
        ordered = sorted(updates, key=lambda update: update.ordinal)
        if state.facts["layers"] is None:
            return self._chosen(state, ordered)
        tensors: dict[str, Tensor | LazyTensor] = {name: state.lazy(name) for name in _kept(state)}
        for name in _travelling(state):
            tensors[name] = LazyTensor(torch.float32, state.shape(name), partial(weighted_mean, state, name, ordered))
        metrics = _means(ordered) | {"layers": float(len(state.facts["layers"]))}
        return Outcome(Payload({**tensors, **reported_base_values(ordered)}, state.facts), metrics)

    def join(self, state: Payload, parts: Sequence[Outcome], step: RoundFacts) -> Outcome:
        """Never asked for: the aggregation is not cut into shards."""
        raise NotImplementedError

    def export(self, state: Payload) -> Adapter:
        """The global adapter: what travels at its current value, private layers and all else at their start.

        Raises ValueError before the first round if a tensor travels as a difference.
        """
        values = {name: with_base(state, name, state.facts["differences"]) for name in _travelling(state)}
        return Adapter("peft", values | untrained_values(state))

    def _expected_scores(self, layers: int) -> dict[str, dict[str, Any]]:
        row = {"dtype": "F32", "in_norm": False}
        expects = {LAYER_SCORES: {**row, "shape": [layers]}}
        return expects if self._config.layer_count == "fixed" else {**expects, KEPT_SHARE: {**row, "shape": [1]}}

    def _chosen(self, state: Payload, updates: Sequence[ClientUpdate]) -> Outcome:
        """The state after the preparation: private factors leave it, and stand in the adapter at their start."""
        weights = [update.weight for update in updates]
        told = [update.payload[LAYER_SCORES] for update in updates]
        means = weighted_sum(told, weights, divisor=math.fsum(weights), dtype=torch.float64)
        share = self._share(updates)
        candidates = state.facts["candidates"]
        layers = chosen_layers(self._config, dict(zip(candidates, means.tolist(), strict=True)), share)
        private = [one for layer in candidates if layer not in layers for one in state.facts["factors"][str(layer)]]
        names = {one["name"] for one in private}
        given = names.intersection(state.facts["given"])
        tensors = {name: state.lazy(name) for name in state if name not in names}
        tensors |= {name + FROZEN: state.lazy(name) for name in given}
        facts = {name: value for name, value in state.facts.items() if name not in ("factors", "given")}
        seeded = [*state.facts["seeded"], *(one for one in private if one["name"] not in given)]
        facts |= {"phase": "train", "layers": layers, "seeded": seeded}
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


def _travelling(state: Payload) -> list[str]:
    return [name for name in state if "/" not in name]


def _kept(state: Payload) -> list[str]:
    return [name for name in state if "/" in name]


def _as_fact(tensor: TensorFacts) -> dict[str, Any]:
    return tensor.model_dump(mode="json")
