"""Plain federated averaging as a base for algorithms: a server half and a client half that subclasses extend.

Server state, all float32:
`NAME`: current value of a tensor that travels, under its canonical name.
`NAME/frozen`: an untrained value of the initial adapter, sent to clients because the seed does not give it.
`NAME/base`: the base model's value of a tensor that travels as a difference, reported by the first cohort, for
export.
`NAME/...` with any other suffix: a subclass's own state for that tensor. It never travels.
Facts: `seed`, `seeded` (tensors that never travel and have their seeded start in the adapter), `frozen` (names that
clients must not train), `differences` (names that travel as a difference from the base).
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from federated.algorithm_kit.local_training import Hooks, train
from federated.algorithm_kit.shared_tensors import (
    BASE,
    FROZEN,
    UPLOAD_DTYPES,
    base_value_schema,
    base_values,
    difference_names,
    factor_scale,
    initial_tensors,
    norm,
    reported_base_values,
    training_metrics,
    untrained_values,
    with_base,
)
from federated.algorithm_kit.update_schema import check_update, schema_like
from federated.contract import (
    Adapter,
    AlgorithmConfig,
    AnyTrainable,
    ClientFacts,
    ClientResult,
    ClientUpdate,
    GradientConfig,
    Outcome,
    RoundFacts,
    View,
)
from federated.maths.averaging import RecentResults, weighted_sum
from federated.maths.initialization import start
from federated.payloads.payload import LazyTensor, Payload
from federated.session import TrainingSession
from federated.trainable import Lora, ModelFacts, TensorFacts

ServerConfig = TypeVar("ServerConfig", bound=AlgorithmConfig)
ClientConfig = TypeVar("ClientConfig", bound=GradientConfig)


class AveragingServer(Generic[ServerConfig]):
    """Server half of federated averaging: next value = current value + mean of the updates by training examples."""

    def __init__(self, config: ServerConfig, trainable: AnyTrainable) -> None:
        self._config = config
        self._trainable = trainable

    @property
    def upload_dtype(self) -> str:
        """The dtype of an update's tensors: a key of `UPLOAD_DTYPES`."""
        return "float32"

    def frozen_tensors(self, model: ModelFacts) -> Sequence[TensorFacts]:
        """The trainable tensors that clients do not train. By default there are none."""
        return ()

    def first_state_of(self, tensor: TensorFacts) -> Mapping[str, LazyTensor]:
        """The subclass's own state for a tensor before the first round, by suffix. By default there is none."""
        return {}

    def next_values(self, state: Payload, updates: Sequence[ClientUpdate], name: str) -> Mapping[str, Tensor]:
        """The next value of the tensor `name` and of the subclass's own state for it, by their names in the state.

        `updates` are sorted by ordinal. Sums follow that order in float64.
        """
        weights = [update.weight for update in updates]
        changes = [update.payload.lazy(name) for update in updates]
        return {name: weighted_sum(changes, weights, divisor=math.fsum(weights), base=state.lazy(name))}

    def start(self, model: ModelFacts, seed: int, initial: Payload | None) -> Payload:
        """The seeded starts, or the tensors of `initial` where it has them.

        Raises FederationRefused naming a tensor that does not fit.
        """
        scale = partial(factor_scale, self._trainable) if isinstance(self._trainable, Lora) else None
        initial_values = initial_tensors(model, initial, scale)
        frozen = self.frozen_tensors(model)
        frozen_names = {tensor.name for tensor in frozen}
        tensors: dict[str, Tensor | LazyTensor] = {}
        for tensor in model.tensors:
            if tensor.name not in frozen_names:
                value = LazyTensor(torch.float32, tensor.shape, partial(start, seed, tensor))
                first = initial_values.get(tensor.name)
                tensors[tensor.name] = value if first is None else first.float()
                tensors |= {f"{tensor.name}/{name}": own for name, own in self.first_state_of(tensor).items()}
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
        """The current values, the same for all clients."""
        current = Payload({name: state.lazy(name) for name in _shared_names(state)})
        names = [name for name in state if "/" not in name or name.endswith(FROZEN)]
        expects = schema_like(current, UPLOAD_DTYPES[self.upload_dtype])
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
        """The tensors of all shards. A tensor's own state is in its own shard."""
        return join_tensors(state, parts)

    def export(self, state: Payload) -> Adapter:
        """An adapter for PEFT: the current values, and the untrained ones from the seed or the initial adapter.

        Raises FederationRefused before the first round if a tensor travels as a difference.
        """
        values = {name: with_base(state, name, state.facts["differences"]) for name in _shared_names(state)}
        return Adapter("peft", values | untrained_values(state))

    def _next_group(self, state: Payload, updates: Sequence[ClientUpdate], name: str) -> Mapping[str, Tensor]:
        return self.next_values(state, updates, name)


class DifferenceClient(Generic[ClientConfig]):
    """Client half of federated averaging: update = local value - received value, weighted by examples. No memory."""

    def __init__(self, config: ClientConfig, trainable: AnyTrainable) -> None:
        self._config = config

    @property
    def upload_dtype(self) -> str:
        """The dtype of the update's tensors: a key of `UPLOAD_DTYPES`."""
        return "float32"

    def hooks(self, session: TrainingSession) -> Hooks:
        """Extensions of the local loop, such as a penalty. The session holds the received values. None by default."""
        return Hooks()

    def apply(self, instruction: Payload, session: TrainingSession, memory: Payload | None, view: View) -> None:
        """Load the received values. The views shared and own are the same."""
        session.load(_received_values(instruction, session))

    def run(self, instruction: Payload, session: TrainingSession, memory: Payload | None) -> ClientResult:
        """Train on all examples and return the difference from the received values."""
        session.load(_received_values(instruction, session))
        session.train_all_except(instruction.facts["frozen"])
        base = base_values(instruction, session)
        metrics = train(session, self._config, self.hooks(session))
        names = [name for name in instruction.facts["expects"] if not name.endswith(BASE)]
        local = session.read(names)
        update = {name: local[name] - instruction[name] for name in names}
        metrics["update_norm"] = norm(update)
        dtype = UPLOAD_DTYPES[self.upload_dtype]
        payload = Payload({name: value.to(dtype) for name, value in update.items()} | base)
        return ClientResult(payload, float(session.examples), metrics)


def join_tensors(state: Payload, parts: Sequence[Outcome]) -> Outcome:
    """The outcome of an aggregation whose shards have disjoint tensors: all of them, with the state's facts."""
    tensors: dict[str, LazyTensor] = {}
    for part in parts:
        tensors |= {name: part.state.lazy(name) for name in part.state}
    return Outcome(Payload(tensors, state.facts), parts[0].metrics)


def _from_group(groups: RecentResults[Mapping[str, Tensor]], name: str) -> Tensor:
    return groups(name.partition("/")[0])[name]


def _shared_names(state: Payload) -> list[str]:
    return [name for name in state if "/" not in name]


def _received_values(instruction: Payload, session: TrainingSession) -> dict[str, Tensor]:
    starts = {name: session.start(name) for name in instruction.facts["frozen"]}
    return starts | {name.removesuffix(FROZEN): instruction[name] for name in instruction}
