"""Server half of federated averaging.

State, all float32:
`NAME`: current value of a tensor that travels, under its canonical name.
`NAME/momentum`, `NAME/second`: its moments in the server's optimizer.
`NAME/frozen`: an untrained value of the initial adapter, sent to clients because the seed does not give it.
`NAME/base`: the base model's value of a tensor that travels as a difference, reported by the first cohort, for
export.
Facts: `seed`, `seeded` (tensors that never travel and have their seeded start in the adapter), `frozen` (names that
clients must not train), `differences` (names that travel as a difference from the base).
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
    base_value_schema,
    difference_names,
    factor_scale,
    initial_tensors,
    reported_base_values,
    training_metrics,
    untrained_values,
    with_base,
)
from federated.algorithm_kit.update_schema import check_update, schema_like
from federated.algorithms.fedavg.config import FedAvgConfig
from federated.algorithms.fedavg.server_optimizers import moments, server_step
from federated.contract import Adapter, AnyTrainable, ClientFacts, ClientUpdate, Outcome, RoundFacts
from federated.maths.averaging import RecentResults, weighted_sum
from federated.maths.initialization import start
from federated.payloads.payload import LazyTensor, Payload
from federated.trainable import Lora, ModelFacts, TensorFacts

_FACTORS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}


class FedAvgServer:
    """Next value = current value + server optimizer(mean of the updates, weighted by training examples)."""

    def __init__(self, config: FedAvgConfig, trainable: AnyTrainable) -> None:
        self._config = config
        self._trainable = trainable

    def start(self, model: ModelFacts, seed: int, initial: Payload | None) -> Payload:
        """The seeded starts, or the tensors of `initial` where it has them.

        Raises FederationRefused naming a tensor that does not fit.
        """
        scale = partial(factor_scale, self._trainable) if isinstance(self._trainable, Lora) else None
        initial_values = initial_tensors(model, initial, scale)
        frozen = [tensor for tensor in model.tensors if self._config.freeze_a and _is_random_factor(tensor)]
        frozen_names = {tensor.name for tensor in frozen}
        tensors: dict[str, Tensor | LazyTensor] = {}
        for tensor in model.tensors:
            if tensor.name not in frozen_names:
                tensors |= self._first_values(tensor, initial_values.get(tensor.name), seed)
        untrained = (*frozen, *model.seeded)
        tensors |= {
            tensor.name + FROZEN: initial_values[tensor.name].float()
            for tensor in untrained
            if tensor.name in initial_values
        }
        facts = {
            "seed": seed,
            "seeded": [tensor.model_dump(mode="json") for tensor in untrained if tensor.name not in initial_values],
            "frozen": sorted(frozen_names),
            "differences": difference_names(model),
        }
        return Payload(tensors, facts)

    def plan(self, state: Payload, clients: Sequence[ClientFacts], step: RoundFacts) -> Mapping[int, Payload]:
        """The current values without the server's moments, the same for all clients."""
        current = Payload({name: state.lazy(name) for name in _travelling(state)})
        names = [name for name in state if "/" not in name or name.endswith(FROZEN)]
        expects = schema_like(current, UPLOAD_DTYPES[self._config.upload_dtype])
        expects |= base_value_schema(state, state.facts["differences"])
        facts = {"expects": expects, "frozen": state.facts["frozen"]}
        instruction = Payload({name: state.lazy(name) for name in names}, facts)
        return {client.ordinal: instruction for client in clients}

    def check(self, instruction: Payload, update: Payload) -> None:
        """Names, dtypes and shapes must match the instruction's schema. Raises UpdateRefused."""
        check_update(instruction, update)

    def aggregate(self, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        """Tensor by tensor over all clients, evaluated when the next state is written or read."""
        updates = sorted(updates, key=lambda update: update.ordinal)
        groups = RecentResults(partial(self._next_group, state, updates))
        tensors: dict[str, LazyTensor] = {}
        for name in state:
            if name.endswith((FROZEN, BASE)):
                tensors[name] = state.lazy(name)
            else:
                tensors[name] = LazyTensor(torch.float32, state.shape(name), partial(_from_group, groups, name))
        return Outcome(Payload({**tensors, **reported_base_values(updates)}, state.facts), training_metrics(updates))

    def join(self, state: Payload, parts: Sequence[Outcome], step: RoundFacts) -> Outcome:
        """The tensors of all shards. A tensor's moments are in its own shard."""
        tensors: dict[str, LazyTensor] = {}
        for part in parts:
            tensors |= {name: part.state.lazy(name) for name in part.state}
        return Outcome(Payload(tensors, state.facts), parts[0].metrics)

    def export(self, state: Payload) -> Adapter:
        """An adapter for PEFT: the current values, and the untrained ones from the seed or the initial adapter.

        Raises FederationRefused before the first round if a tensor travels as a difference.
        """
        values = {name: with_base(state, name, state.facts["differences"]) for name in _travelling(state)}
        return Adapter("peft", values | untrained_values(state))

    def _first_values(self, tensor: TensorFacts, initial: Tensor | None, seed: int) -> dict[str, Tensor | LazyTensor]:
        value = LazyTensor(torch.float32, tensor.shape, partial(start, seed, tensor))
        first_moments = {
            f"{tensor.name}/{moment}": LazyTensor(
                torch.float32, tensor.shape, partial(torch.full, tensor.shape, first)
            )
            for moment, first in moments(self._config).items()
        }
        return {tensor.name: value if initial is None else initial.float(), **first_moments}

    def _next_group(self, state: Payload, updates: Sequence[ClientUpdate], name: str) -> dict[str, Tensor]:
        tensors = [update.payload.lazy(name) for update in updates]
        weights = [update.weight for update in updates]
        total = math.fsum(weights)
        if self._config.server_optimizer == "none":
            divisor = total / self._config.server_learning_rate
            return {name: weighted_sum(tensors, weights, divisor=divisor, base=state.lazy(name))}
        mean = weighted_sum(tensors, weights, divisor=total, dtype=torch.float64)
        old_moments = {moment: state[f"{name}/{moment}"] for moment in moments(self._config)}
        value, next_moments = server_step(self._config, state[name], mean, old_moments)
        tensors_by_name = {name: value} | {f"{name}/{moment}": tensor for moment, tensor in next_moments.items()}
        return {key: tensor.float() for key, tensor in tensors_by_name.items()}


def _from_group(groups: RecentResults[dict[str, Tensor]], name: str) -> Tensor:
    return groups(name.partition("/")[0])[name]


def _travelling(state: Payload) -> list[str]:
    return [name for name in state if "/" not in name]


def _is_random_factor(tensor: TensorFacts) -> bool:
    # PEFT initializes an embedding's B at random and its A at zero, the reverse of all other modules.
    return tensor.initialisation.kind in ("uniform", "normal") and not _FACTORS.isdisjoint(tensor.name.split("."))
