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

import torch
from torch import Tensor

from federated.algorithm_kit.shared_tensors import (
    BASE,
    FROZEN,
    UPLOAD_DTYPES,
    absolute,
    checked_initial,
    differences,
    expected_bases,
    factor_scale,
    told_bases,
    training_metrics,
    untrained_values,
)
from federated.algorithm_kit.update_schema import expects_like, refuse_unexpected
from federated.algorithms.fedavg.config import FedAvgConfig
from federated.algorithms.fedavg.server_optimizers import moments, server_step
from federated.contract import Adapter, AnyTrainable, ClientFacts, ClientUpdate, Outcome, RoundFacts
from federated.maths.averaging import RecentResults, weighted_sum
from federated.maths.initialization import start
from federated.payloads.payload import LazyTensor, Payload
from federated.trainable import Lora, ModelFacts, TensorFacts

_FACTORS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}


class FedAvgServer:
    """Next value = current value + server optimiser (mean of the updates, weighted by examples trained on)."""

    def __init__(self, config: FedAvgConfig, trainable: AnyTrainable) -> None:
        self._config = config
        self._trainable = trainable

    def start(self, model: ModelFacts, seed: int, initial: Payload | None) -> Payload:
        """The seeded starts, or the tensors of `initial` where it has them. Raises ValueError naming a misfit."""
        scale = partial(factor_scale, self._trainable) if isinstance(self._trainable, Lora) else None
        given = checked_initial(model, initial, scale)
        frozen = [tensor for tensor in model.tensors if self._config.freeze_a and _is_random_factor(tensor)]
        frozen_names = {tensor.name for tensor in frozen}
        tensors: dict[str, Tensor | LazyTensor] = {}
        for tensor in model.tensors:
            if tensor.name not in frozen_names:
                tensors |= self._first(tensor, given.get(tensor.name), seed)
        fixed = (*frozen, *model.seeded)
        tensors |= {tensor.name + FROZEN: given[tensor.name].float() for tensor in fixed if tensor.name in given}
        seeded = [tensor.model_dump(mode="json") for tensor in fixed if tensor.name not in given]
        named = {"frozen": sorted(frozen_names), "differences": differences(model)}
        return Payload(tensors, {"seed": seed, "seeded": seeded, **named})

    def plan(self, state: Payload, clients: Sequence[ClientFacts], step: RoundFacts) -> Mapping[int, Payload]:
        """The current values, the same for all, and nothing of the server's optimiser."""
        current = Payload({name: state.lazy(name) for name in _travelling(state)})
        sent = [name for name in state if "/" not in name or name.endswith(FROZEN)]
        expects = expects_like(current, UPLOAD_DTYPES[self._config.upload_dtype])
        expects |= expected_bases(state, state.facts["differences"])
        facts = {"expects": expects, "frozen": state.facts["frozen"]}
        instruction = Payload({name: state.lazy(name) for name in sent}, facts)
        return {client.ordinal: instruction for client in clients}

    def check(self, instruction: Payload, update: Payload) -> None:
        """Names, dtypes and shapes must be those of the instruction's `expects`. Raises UpdateRefused."""
        refuse_unexpected(instruction, update)

    def aggregate(self, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        """Tensor by tensor over all clients, when the next state is written or read."""
        ordered = sorted(updates, key=lambda update: update.ordinal)
        averaged = RecentResults(partial(self._averaged, state, ordered))
        tensors: dict[str, LazyTensor] = {}
        for name in state:
            if name.endswith((FROZEN, BASE)):
                tensors[name] = state.lazy(name)
            else:
                tensors[name] = LazyTensor(torch.float32, state.shape(name), partial(_of_group, averaged, name))
        return Outcome(Payload({**tensors, **told_bases(ordered)}, state.facts), training_metrics(ordered))

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
        values = {name: absolute(state, name, state.facts["differences"]) for name in _travelling(state)}
        return Adapter("peft", values | untrained_values(state))

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


def _of_group(averaged: RecentResults[dict[str, Tensor]], name: str) -> Tensor:
    return averaged(name.partition("/")[0])[name]


def _travelling(state: Payload) -> list[str]:
    return [name for name in state if "/" not in name]


def _is_random_factor(tensor: TensorFacts) -> bool:
    # Of an embedding's factors PEFT starts B at random and A at zero, the other way round than elsewhere.
    return tensor.initialisation.kind in ("uniform", "normal") and not _FACTORS.isdisjoint(tensor.name.split("."))
