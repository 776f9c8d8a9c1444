"""The coordinator's half of FedPepTAO.

State: of each layer that travels its prompts (`prompt_embeddings/layer.N`, float32), and of the head's last linear
its tensors under their canonical names, float32; beside a layer's, once there were two rounds, float64:
`NAME/momentum`, `NAME/drift`, `NAME/control` (`dual_adaptive.Moments`);
`NAME/frozen`: a value of the initial adapter that does not travel back, sent to clients since no seed makes it.
Facts: `stage` ("warm_up" | "measure" | "train") and the reserved `phase`; `travelling` (layers), `head`, `frozen`
(names the clients must not train), `seed`, `seeded`, `prompt` (how the prompts start), `layers`; `warmed` (warm-up
rounds done); `layer_scores` and `shares`, what the clients' measurements came to.
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
    chosen_layers,
    joined,
    slice_name,
    slices,
    trained_head,
)
from federated.contract import (
    Adapter,
    AnyTrainable,
    ClientFacts,
    ClientUpdate,
    FederationRefused,
    Outcome,
    RoundFacts,
    UpdateRefused,
)
from federated.maths.averaging import weighted_sum
from federated.maths.initialization import seeded_values, start
from federated.payloads.payload import Payload
from federated.trainable import PROMPT_EMBEDDINGS, ModelFacts, TensorFacts


class FedPepTAOServer:
    """Chooses the layers that travel, then averages them and takes a step of its own."""

    def __init__(self, config: FedPepTAOConfig, trainable: AnyTrainable) -> None:
        self._config = config

    def start(self, model: ModelFacts, seed: int, initial: Payload | None) -> Payload:
        """All layers at their seeded starts or those of `initial`; preparation comes first.

        Raises ValueError naming a tensor of `initial` that does not fit, or prompts that are not two widths a layer.
        """
        given = initial_tensors(model, initial)
        prompt = _prompt(model)
        head = trained_head(model)
        tensors = slices(_first(prompt, given, seed), model.layers)
        if prompt.name in given:
            tensors |= {name + FROZEN: value for name, value in tensors.items()}
        tensors |= {tensor.name: _first(tensor, given, seed) for tensor in model.tensors if tensor.name in head}
        frozen = [tensor for tensor in model.tensors if tensor.name not in head and tensor != prompt]
        fixed = (*frozen, *model.seeded)
        tensors |= {tensor.name + FROZEN: given[tensor.name].float() for tensor in fixed if tensor.name in given}
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
            "seeded": [tensor.model_dump(mode="json") for tensor in fixed if tensor.name not in given],
        }
        return Payload(tensors, facts)

    def plan(self, state: Payload, clients: Sequence[ClientFacts], step: RoundFacts) -> Mapping[int, Payload]:
        """The travelling values and those that nobody trains, the same for all."""
        names = _travelling(state)
        sent = [*names, *(name for name in state if name.endswith(FROZEN) and name.removesuffix(FROZEN) not in names)]
        if state.facts["stage"] == "measure":
            expects = self._measurements(state.facts["layers"])
        else:
            expects = schema_like(Payload({name: state.lazy(name) for name in names}), torch.float32)
        facts = {key: state.facts[key] for key in ("stage", "travelling", "frozen")}
        instruction = Payload({name: state.lazy(name) for name in sent}, {**facts, "expects": expects})
        return {client.ordinal: instruction for client in clients}

    def check(self, instruction: Payload, update: Payload) -> None:
        """Names, dtypes and shapes as the instruction's `expects`; shares in their range. Raises UpdateRefused."""
        check_update(instruction, update)
        if SHARES in update and bool(((update[SHARES] < 0) | (update[SHARES] > 1)).any()):
            raise UpdateRefused(SHARES, "has one that is no share from 0 to 1")

    def aggregate(self, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        """Layer by layer over all clients, when the next state and the notes are written or read."""
        ordered = sorted(updates, key=lambda update: update.ordinal)
        stages = {"warm_up": self._warmed, "measure": self._chosen, "train": self._trained}
        return stages[state.facts["stage"]](state, ordered, step)

    def join(self, state: Payload, parts: Sequence[Outcome], step: RoundFacts) -> Outcome:
        """Never asked: this algorithm is not sharded."""
        raise NotImplementedError

    def export(self, state: Payload) -> Adapter:
        """The travelling prompts, and the other layers at the start that all clients share; opens in PEFT."""
        facts = state.facts
        prompts = _first_prompts(state) | {name: state[name] for name in map(slice_name, facts["travelling"])}
        tensors = {PROMPT_EMBEDDINGS: joined(prompts, facts["layers"])}
        tensors |= {name: state[name] for name in facts["head"]}
        tensors |= {name.removesuffix(FROZEN): state[name] for name in state if _is_given(name)}
        return Adapter("peft", tensors | seeded_values(facts["seed"], facts["seeded"]))

    def _measurements(self, layers: int) -> dict[str, dict[str, Any]]:
        scores = {LAYER_SCORES: {"dtype": "F32", "shape": [layers], "in_norm": False}}
        if self._config.layer_count == "fixed":
            return scores
        return scores | {SHARES: {"dtype": "F32", "shape": [len(ESTIMATORS)], "in_norm": False}}

    def _warmed(self, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        warmed = state.facts["warmed"] + 1
        stage = "measure" if warmed >= self._config.warmup_rounds else "warm_up"
        kept = {name: state.lazy(name) for name in state if name.endswith(FROZEN)}
        tensors = kept | averages(state, _travelling(state), updates)
        facts = {**state.facts, "stage": stage, "warmed": warmed}
        return Outcome(Payload(tensors, facts), training_metrics(updates))

    def _chosen(self, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        config, told = self._config, {LAYER_SCORES: _mean(LAYER_SCORES, updates)}
        share = config.layer_share
        metrics = {}
        if config.layer_count != "fixed":
            told[SHARES] = _mean(SHARES, updates)
            metrics = {f"{way}_share": value for way, value in zip(ESTIMATORS, told[SHARES], strict=True)}
            share = metrics[f"{config.layer_count}_share"]
        clamped = config.layer_count != "fixed"
        layers = chosen_layers(told[LAYER_SCORES], share, skip_last=config.skip_last, all_but_one=clamped)
        left = {slice_name(layer) for layer in range(state.facts["layers"]) if layer not in layers}
        needless = left | {slice_name(layer) + FROZEN for layer in layers}
        tensors = {name: state.lazy(name) for name in state if name not in needless}
        facts = {**state.facts, "phase": "train", "stage": "train", "travelling": layers, **told}
        return Outcome(Payload(tensors, facts), {"layers_travelling": float(len(layers)), **metrics})

    def _trained(self, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        adaptive = AdaptiveRound(self._config, state, updates, step)
        names = list(map(slice_name, state.facts["travelling"]))
        tensors = {name: state.lazy(name) for name in state if name.endswith(FROZEN)}
        tensors |= averages(state, state.facts["head"], updates) | adaptive.layers(names)
        metrics = training_metrics(updates) | {"server_rate": server_rate(self._config, step.number)}
        return Outcome(Payload(tensors, state.facts), metrics, notes=adaptive.notes(names))


def _prompt(model: ModelFacts) -> TensorFacts:
    prompt = next((tensor for tensor in model.tensors if tensor.name == PROMPT_EMBEDDINGS), None)
    wanted = 2 * model.layers * model.kv_width
    if prompt is None or prompt.shape[1] != wanted:
        found = "no prompts" if prompt is None else f"prompts of width {prompt.shape[1]}"
        raise FederationRefused(f"the model has {found}, expected {wanted}: keys and values of {model.layers} layers")
    return prompt


def _first(tensor: TensorFacts, given: Mapping[str, Tensor], seed: int) -> Tensor:
    return given[tensor.name].float() if tensor.name in given else start(seed, tensor)


def _travelling(state: Payload) -> list[str]:
    return [*map(slice_name, state.facts["travelling"]), *state.facts["head"]]


def _first_prompts(state: Payload) -> dict[str, Tensor]:
    """Where each layer that does not travel starts."""
    prompt = TensorFacts.model_validate(state.facts["prompt"])
    seeded = slices(start(state.facts["seed"], prompt), state.facts["layers"])
    return {name: state.get(name + FROZEN, value) for name, value in seeded.items()}


def _is_given(name: str) -> bool:
    return name.endswith(FROZEN) and not name.startswith(PROMPT_EMBEDDINGS)


def _mean(name: str, updates: Sequence[ClientUpdate]) -> list[float]:
    """What the clients measured, weighted by their examples."""
    weights = [update.weight for update in updates]
    tensors = [update.payload.lazy(name) for update in updates]
    mean: list[float] = weighted_sum(tensors, weights, divisor=math.fsum(weights), dtype=torch.float64).tolist()
    return mean
