"""Adaptive aggregation of one train round, tensor by tensor: the next state and the clients' next notes."""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from federated.algorithm_kit.shared_tensors import add_weighted_mean
from federated.algorithms.fedpeptao.config import FedPepTAOConfig
from federated.algorithms.fedpeptao.dual_adaptive import (
    ClientUpdateFacts,
    Moments,
    next_control,
    next_variate,
    server_rate,
    server_step,
)
from federated.contract import ClientUpdate, RoundFacts
from federated.maths.averaging import RecentResults
from federated.payloads.payload import LazyTensor, Payload

MOMENTUM, DRIFT, CONTROL = "/momentum", "/drift", "/control"


def averages(state: Payload, names: Sequence[str], updates: Sequence[ClientUpdate]) -> dict[str, LazyTensor]:
    """The averaged tensors, computed when they are read."""
    return {
        name: LazyTensor(torch.float32, state.shape(name), partial(add_weighted_mean, state, name, updates))
        for name in names
    }


class AdaptiveRound:
    """The layers after one train round. All tensors of a layer are computed together, when the first is read."""

    def __init__(
        self, config: FedPepTAOConfig, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts
    ) -> None:
        self._config, self._state, self._updates = config, state, updates
        self._client_count = step.clients
        self._rate = server_rate(config, step.number)
        self._total = math.fsum(update.weight for update in updates)
        self._steps = [config.planned_steps(update.examples) for update in updates]
        self._layer = RecentResults(self._next)

    def layers(self, names: Sequence[str]) -> dict[str, LazyTensor]:
        """Next values (float32) and moments (float64) of the layers called `names`."""
        if self._rate == 0:
            return averages(self._state, names, self._updates)
        suffixes = [MOMENTUM, DRIFT, *([CONTROL] if self._config.control_variates else [])]
        tensors = {}
        for name in names:
            for suffix, dtype in (("", torch.float32), *((suffix, torch.float64) for suffix in suffixes)):
                reader = partial(self._suffix_value, name, suffix)
                tensors[name + suffix] = LazyTensor(dtype, self._state.shape(name), reader)
        return tensors

    def notes(self, names: Sequence[str]) -> dict[int, Payload]:
        """The next control variates of the cohort's clients, by ordinal."""
        if self._rate == 0 or not self._config.control_variates:
            return {}
        notes = {}
        for index, update in enumerate(self._updates):
            tensors = {
                name: LazyTensor(torch.float64, self._state.shape(name), partial(self._variate, index, name))
                for name in names
            }
            notes[update.ordinal] = Payload(tensors)
        return notes

    def _suffix_value(self, name: str, suffix: str) -> Tensor:
        return self._layer(name)[suffix]

    def _next(self, name: str) -> dict[str, Tensor]:
        state, config = self._state, self._config
        mean = add_weighted_mean(state, name, self._updates, torch.float64)
        drift = state[name].double() - mean
        control = self._control(name)
        if config.control_variates:
            control = next_control(config, list(self._facts_of_clients(name)), control, self._client_count)
        if name + MOMENTUM in state:
            before = Moments(state[name + MOMENTUM], state[name + DRIFT])
            value, momentum = server_step(config, self._rate, mean, drift, before, self._corrections(name, control))
        else:
            value, momentum = mean, torch.zeros_like(mean)
        return {"": value.float(), MOMENTUM: momentum, DRIFT: drift, CONTROL: control}

    def _control(self, name: str) -> Tensor:
        """c before this round."""
        if name + CONTROL in self._state:
            return self._state[name + CONTROL]
        return torch.zeros(self._state.shape(name), dtype=torch.float64)

    def _facts_of_clients(self, name: str) -> Iterator[ClientUpdateFacts]:
        for index in range(len(self._updates)):
            yield self._facts_of_client(index, name)

    def _facts_of_client(self, index: int, name: str) -> ClientUpdateFacts:
        update = self._updates[index]
        variate = None if update.note is None else update.note[name]
        return ClientUpdateFacts(self._steps[index], update.payload[name], variate)

    def _variate(self, index: int, name: str) -> Tensor:
        return next_variate(self._config, self._facts_of_client(index, name), self._control(name))

    def _corrections(self, name: str, control: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Share of the weights and `c - c_k` of each client, with the next c and c_k."""
        for index, update in enumerate(self._updates):
            share = update.weight / self._total
            if self._config.control_variates:
                yield share, control - self._variate(index, name)
            else:
                yield share, torch.zeros_like(control)
