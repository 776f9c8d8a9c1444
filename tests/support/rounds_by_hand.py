"""Rounds of a federation, taken apart: each step of a half can be called, repeated or changed by a test."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from federated import registry
from federated.contract import AlgorithmConfig, AnyTrainable, ClientFacts, ClientUpdate, RoundFacts
from federated.payloads.payload import Payload
from federated.trainable import Full, Lora, Prefix
from tests.support.tiny_session import TinyFederation

QUICK = {"local_steps": 2, "batch_size": 4}
TRAINABLES: Mapping[str, AnyTrainable] = {
    "lora": Lora(r=2, lora_alpha=4),
    "prefix": Prefix(num_virtual_tokens=2),
    "full": Full(names=("layers.*",)),
}


@dataclass(frozen=True)
class Sample:
    """One algorithm with one config and one trainable; `clients` take part."""

    algorithm: str
    config: AlgorithmConfig
    trainable: AnyTrainable
    clients: int = 3
    federation: TinyFederation = field(init=False)

    def __post_init__(self) -> None:
        federation = TinyFederation(trainable=self.trainable, examples_of={0: 6, 1: 9, 2: 12})
        object.__setattr__(self, "federation", federation)

    @property
    def server(self) -> Any:
        return registry.server_half(self.algorithm, self.config, self.trainable)

    @property
    def client(self) -> Any:
        return registry.client_half(self.algorithm, self.config, self.trainable)

    @property
    def ordinals(self) -> range:
        return range(self.clients)


def samples() -> list[Sample]:
    """Every algorithm with each of its configs and each trainable that the config admits."""
    found = []
    for name, algorithm in registry.algorithms().items():
        for values in configs_of(name):
            config = registry.make_config(name, values)
            for kind in sorted(algorithm.trainables):
                try:
                    registry.check_trainable(name, config, TRAINABLES[kind])
                except ValueError:
                    continue
                found.append(Sample(name, config, TRAINABLES[kind]))
    return found


def configs_of(name: str) -> list[dict[str, Any]]:
    """The algorithm's `samples.py`, or its declared example with two local steps."""
    module = f"tests.federated.algorithms.{name}.samples"
    try:
        return list(importlib.import_module(module).CONFIGS)
    except ModuleNotFoundError as missing:
        if missing.name not in (module, module.rpartition(".")[0]):
            raise
    example = dict(registry.algorithm(name).example)
    return [example | {field: value for field, value in QUICK.items() if field in example}]


def first_state(sample: Sample) -> Payload:
    """The state before the first round."""
    return through_bytes(sample.server.start(sample.federation.open(0, 0).facts, sample.federation.seed, None))


def step_of(state: Payload, sample: Sample, number: int = 1) -> RoundFacts:
    """The round that this state asks for."""
    kind = "prepare" if state.facts.get("phase") == "prepare" else "train"
    return RoundFacts(number, "prepare" if kind == "prepare" else "train", 5, sample.clients)


def instructions(sample: Sample, state: Payload) -> dict[int, Payload]:
    """What each client is told."""
    clients = [
        ClientFacts(ordinal, f"client {ordinal}", sample.federation.examples_of[ordinal], {}, {}, None, 0)
        for ordinal in sample.ordinals
    ]
    planned = sample.server.plan(state, clients, step_of(state, sample))
    return {ordinal: through_bytes(planned[ordinal]) for ordinal in sample.ordinals}


def updates(sample: Sample, state: Payload) -> list[ClientUpdate]:
    """What each client, without memory, answers."""
    told = instructions(sample, state)
    made = []
    for ordinal in sample.ordinals:
        session = sample.federation.open(ordinal, 100 + ordinal)
        with torch.random.fork_rng():
            torch.manual_seed(session.seed)
            result = sample.client.run(told[ordinal], session, None)
        update = through_bytes(result.update)
        sample.server.check(told[ordinal], update)
        made.append(ClientUpdate(ordinal, session.examples, result.weight, update, result.metrics, None))
    return made


def through_bytes(payload: Payload) -> Payload:
    """The payload as another process would read it."""
    return Payload.decode(payload.encode())
