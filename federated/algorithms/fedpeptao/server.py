"""Server half of FedPepTAO.

State:
`prompt_embeddings/layer.N`: prompts of each layer that travels, float32.
The tensors of the head's last linear map, under their canonical names, float32.
`NAME/momentum`, `NAME/drift`, `NAME/control`: moments of a layer from the second round on, float64
(`dual_adaptive.Moments`).
`NAME/frozen`: a value of the initial adapter that does not travel back, sent to clients because the seed does not
give it.
Facts: `stage` ("warm_up" | "measure" | "train") and the reserved `phase`, `travelling` (layers), `head`, `frozen`
(names that clients must not train), `seed`, `seeded`, `prompt` (initialization of the prompts), `layers`, `warmed`
(number of finished warm-up rounds), `layer_scores` and `shares` (means of the clients' measurements).
A client's note: its control variate, float64, under the names of the layers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from federated.algorithm_kit.layer_budget import ESTIMATORS
from federated.algorithm_kit.shared_tensors import FROZEN, initial_tensors, training_metrics
from federated.algorithm_kit.update_schema import check_update, schema_like
from federated.algorithms.fedpeptao.adaptive_round import AdaptiveRound, averages
from federated.algorithms.fedpeptao.config import FedPepTAOConfig
from federated.algorithms.fedpeptao.dual_adaptive import server_rate
from federated.algorithms.fedpeptao.prompt_layers import (
    LAYER_SCORES,
    SHARES,
    choose_layers,
    head_names,
    join_slices,
    slice_name,
    slices,
)
from federated.contract import (
    Adapter,
    AnyTrainable,
    ClientFacts,
    ClientUpdate,
    FederationRefused,
    Outcome,
    RoundFacts,
    ServerHalf,
    UpdateRefused,
)
from federated.maths.averaging import weighted_sum
from federated.maths.initialization import seeded_values, start
from federated.payloads.payload import Payload
from federated.trainable import PROMPT_EMBEDDINGS, ModelFacts, TensorFacts


class FedPepTAOServer(ServerHalf):
    """Chooses the layers that travel, then averages them and takes its own step."""

    def __init__(self, config: FedPepTAOConfig, trainable: AnyTrainable) -> None:
        self._config = config

    def start(self, model: ModelFacts, seed: int, initial: Payload | None) -> Payload:
        """All layers at their seeded starts or those of `initial`, in the preparation phase.

        Raises FederationRefused for a tensor of `initial` that does not fit, and for prompts that are not two widths
        a layer.
        """
        initial_values = initial_tensors(model, initial)
        prompt = _prompt(model)
        head = head_names(model)
        tensors = slices(_initial_value(prompt, initial_values, seed), model.layers)
        if prompt.name in initial_values:
            tensors |= {name + FROZEN: value for name, value in tensors.items()}
        tensors |= {
            tensor.name: _initial_value(tensor, initial_values, seed)
            for tensor in model.tensors
            if tensor.name in head
        }
        frozen = [tensor for tensor in model.tensors if tensor.name not in head and tensor != prompt]
        untrained = (*frozen, *model.seeded)
        tensors |= {
            tensor.name + FROZEN: initial_values[tensor.name].float()
            for tensor in untrained
            if tensor.name in initial_values
        }
        facts = {
            "phase": "prepare",
            "stage": "warm_up" if self._config.warms_up else "measure",
            "warmed": 0,
            "seed": seed,
            "layers": model.layers,
            "travelling": list(range(model.layers)),
            "head": head,
            "frozen": [tensor.name for tensor in frozen],
            "prompt": prompt.model_dump(mode="json"),
            "seeded": [tensor.model_dump(mode="json") for tensor in untrained if tensor.name not in initial_values],
        }
        return Payload(tensors, facts)

    def plan(self, state: Payload, clients: Sequence[ClientFacts], step: RoundFacts) -> Mapping[int, Payload]:
        """The shared values and the untrained ones, the same for all clients."""
        names = _shared_names(state)
        names_to_send = [
            *names,
            *(name for name in state if name.endswith(FROZEN) and name.removesuffix(FROZEN) not in names),
        ]
        if state.facts["stage"] == "measure":
            expects = self._measurements(state.facts["layers"])
        else:
            expects = schema_like(Payload({name: state.lazy(name) for name in names}), torch.float32)
        facts = {key: state.facts[key] for key in ("stage", "travelling", "frozen")}
        instruction = Payload({name: state.lazy(name) for name in names_to_send}, {**facts, "expects": expects})
        return {client.ordinal: instruction for client in clients}

    def check(self, instruction: Payload, update: Payload) -> None:
        """Names, dtypes and shapes must match the instruction's schema, shares their range. Raises UpdateRefused."""
        check_update(instruction, update)
        if SHARES in update and bool(((update[SHARES] < 0) | (update[SHARES] > 1)).any()):
            raise UpdateRefused(SHARES, "has a share outside of 0 to 1")

    def aggregate(self, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        """Layer by layer over all clients, evaluated when the next state and the notes are written or read."""
        updates = sorted(updates, key=lambda update: update.ordinal)
        stages = {"warm_up": self._warm_up, "measure": self._choose, "train": self._train}
        return stages[state.facts["stage"]](state, updates, step)

    def export(self, state: Payload) -> Adapter:
        """An adapter for PEFT: the shared prompts, and the other layers at the start that all clients share."""
        facts = state.facts
        prompts = _first_prompts(state) | {name: state[name] for name in map(slice_name, facts["travelling"])}
        tensors = {PROMPT_EMBEDDINGS: join_slices(prompts, facts["layers"])}
        tensors |= {name: state[name] for name in facts["head"]}
        tensors |= {name.removesuffix(FROZEN): state[name] for name in state if _is_head_value(name)}
        return Adapter("peft", tensors | seeded_values(facts["seed"], facts["seeded"]))

    def _measurements(self, layers: int) -> dict[str, dict[str, Any]]:
        scores = {LAYER_SCORES: {"dtype": "F32", "shape": [layers], "in_norm": False}}
        if self._config.layer_count == "fixed":
            return scores
        return scores | {SHARES: {"dtype": "F32", "shape": [len(ESTIMATORS)], "in_norm": False}}

    def _warm_up(self, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        rounds_done = state.facts["warmed"] + 1
        stage = "measure" if rounds_done >= self._config.warmup_rounds else "warm_up"
        tensors = {name: state.lazy(name) for name in state if name.endswith(FROZEN)}
        tensors |= averages(state, _shared_names(state), updates)
        facts = {**state.facts, "stage": stage, "warmed": rounds_done}
        return Outcome(Payload(tensors, facts), training_metrics(updates))

    def _choose(self, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        config, measurements = self._config, {LAYER_SCORES: _mean(LAYER_SCORES, updates)}
        share = config.layer_share
        metrics = {}
        if config.layer_count != "fixed":
            measurements[SHARES] = _mean(SHARES, updates)
            metrics = {
                f"{estimator}_share": value for estimator, value in zip(ESTIMATORS, measurements[SHARES], strict=True)
            }
            share = metrics[f"{config.layer_count}_share"]
        by_hessian = config.layer_count != "fixed"
        layers = choose_layers(measurements[LAYER_SCORES], share, skip_last=config.skip_last, all_but_one=by_hessian)
        private = {slice_name(layer) for layer in range(state.facts["layers"]) if layer not in layers}
        obsolete = private | {slice_name(layer) + FROZEN for layer in layers}
        tensors = {name: state.lazy(name) for name in state if name not in obsolete}
        facts = {**state.facts, "phase": "train", "stage": "train", "travelling": layers, **measurements}
        return Outcome(Payload(tensors, facts), {"layers_travelling": float(len(layers)), **metrics})

    def _train(self, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        adaptive = AdaptiveRound(self._config, state, updates, step)
        names = list(map(slice_name, state.facts["travelling"]))
        tensors = {name: state.lazy(name) for name in state if name.endswith(FROZEN)}
        tensors |= averages(state, state.facts["head"], updates) | adaptive.layers(names)
        metrics = training_metrics(updates) | {"server_rate": server_rate(self._config, step.number)}
        return Outcome(Payload(tensors, state.facts), metrics, notes=adaptive.notes(names))


def _prompt(model: ModelFacts) -> TensorFacts:
    prompt = next((tensor for tensor in model.tensors if tensor.name == PROMPT_EMBEDDINGS), None)
    width = 2 * model.layers * model.kv_width
    if prompt is None or prompt.shape[1] != width:
        problem = "no prompts" if prompt is None else f"prompts of width {prompt.shape[1]}"
        raise FederationRefused(
            f"the model has {problem}, expected {width}: keys and values of {model.layers} layers"
        )
    return prompt


def _initial_value(tensor: TensorFacts, initial_values: Mapping[str, Tensor], seed: int) -> Tensor:
    return initial_values[tensor.name].float() if tensor.name in initial_values else start(seed, tensor)


def _shared_names(state: Payload) -> list[str]:
    return [*map(slice_name, state.facts["travelling"]), *state.facts["head"]]


def _first_prompts(state: Payload) -> dict[str, Tensor]:
    """The start of each layer, by name."""
    prompt = TensorFacts.model_validate(state.facts["prompt"])
    starts = slices(start(state.facts["seed"], prompt), state.facts["layers"])
    return {name: state.get(name + FROZEN, value) for name, value in starts.items()}


def _is_head_value(name: str) -> bool:
    return name.endswith(FROZEN) and not name.startswith(PROMPT_EMBEDDINGS)


def _mean(name: str, updates: Sequence[ClientUpdate]) -> list[float]:
    """Mean of the clients' measurements, weighted by their examples."""
    weights = [update.weight for update in updates]
    tensors = [update.payload.lazy(name) for update in updates]
    mean: list[float] = weighted_sum(tensors, weights, divisor=math.fsum(weights), dtype=torch.float64).tolist()
    return mean
