"""One train round on the server, tensor by tensor: what the updates make of the state, and of the clients' notes."""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from federated.algorithm_kit.shared_tensors import averaged
from federated.algorithms.fedpeptao.config import FedPepTAOConfig
from federated.algorithms.fedpeptao.dual_adaptive import (
    Answer,
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
    """The averaged tensors, made when they are read."""
    return {
        name: LazyTensor(torch.float32, state.shape(name), partial(averaged, state, name, updates)) for name in names
    }


class AdaptiveRound:
    """The layers after one train round; what is read of one layer is worked out together, and not kept for long."""

    def __init__(
        self, config: FedPepTAOConfig, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts
    ) -> None:
        self._config, self._state, self._updates = config, state, updates
        self._registered = step.clients
        self._rate = server_rate(config, step.number)
        self._total = math.fsum(update.weight for update in updates)
        self._steps = [config.planned_steps(update.examples) for update in updates]
        self._layer = RecentResults(self._next)

    def layers(self, names: Sequence[str]) -> dict[str, LazyTensor]:
        """Next values (float32) and moments (float64) of the layers called `names`."""
        if self._rate == 0:
            return averages(self._state, names, self._updates)
        kept = [MOMENTUM, DRIFT, *([CONTROL] if self._config.control_variates else [])]
        tensors = {}
        for name in names:
            for suffix, dtype in (("", torch.float32), *((suffix, torch.float64) for suffix in kept)):
                read = partial(self._part, name, suffix)
                tensors[name + suffix] = LazyTensor(dtype, self._state.shape(name), read)
        return tensors

    def notes(self, names: Sequence[str]) -> dict[int, Payload]:
        """The control variates of the clients that answered, by ordinal."""
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

    def _part(self, name: str, suffix: str) -> Tensor:
        return self._layer(name)[suffix]

    def _next(self, name: str) -> dict[str, Tensor]:
        state, config = self._state, self._config
        mean = averaged(state, name, self._updates, torch.float64)
        drift = state[name].double() - mean
        control = self._control(name)
        if config.control_variates:
            control = next_control(config, list(self._answers(name)), control, self._registered)
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

    def _answers(self, name: str) -> Iterator[Answer]:
        for index in range(len(self._updates)):
            yield self._answer(index, name)

    def _answer(self, index: int, name: str) -> Answer:
        update = self._updates[index]
        variate = None if update.note is None else update.note[name]
        return Answer(self._steps[index], update.payload[name], variate)

    def _variate(self, index: int, name: str) -> Tensor:
        return next_variate(self._config, self._answer(index, name), self._control(name))

    def _corrections(self, name: str, control: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Share of the weights and `c - c_k` of each client, both new."""
        for index, update in enumerate(self._updates):
            share = update.weight / self._total
            if self._config.control_variates:
                yield share, control - self._variate(index, name)
            else:
                yield share, torch.zeros_like(control)
