"""Simulation of a federation in one process: the same halves, schedule and seeds, without HTTP, database or queue.

For research, benchmarks and tests. Every payload is encoded and decoded as it is between real processes.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from federated import registry, schedule
from federated.contract import (
    Adapter,
    AlgorithmConfig,
    AnyTrainable,
    ClientFacts,
    ClientHalf,
    ClientUpdate,
    RoundFacts,
    ServerHalf,
    View,
)
from federated.payloads.payload import Payload
from federated.session import TrainingSession

OpenSession = Callable[[int, int], TrainingSession]
RoundKind = Literal["prepare", "train"]


@dataclass(frozen=True, slots=True)
class SimulatedFederation:
    """The fields of a federation's request that affect its result. Ordinals start at 0, as in the service.

    `clients_per_round` None: all. `settings` and `capabilities` (as a worker reports them) are by ordinal.
    `evaluate_every` None: never.
    """

    algorithm: str
    config: AlgorithmConfig
    trainable: AnyTrainable
    clients: int
    rounds: int
    seed: int = 0
    clients_per_round: int | None = None
    settings: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    capabilities: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    evaluate_every: int | None = None
    stop_metric: str | None = None
    stop_target: float | None = None
    stop_patience: int | None = None
    initial: Payload | None = None


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One completed round. Bytes are of all instructions (download) and updates (upload) of its cohort.

    `seconds` is the processor time of all its clients and the server, without the evaluation.
    """

    number: int
    kind: RoundKind
    cohort: tuple[int, ...]
    metrics: Mapping[str, float]
    download_bytes: int
    upload_bytes: int
    seconds: float = field(compare=False)


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a federation. `reason` is "rounds", "target", "patience" or the algorithm's own."""

    adapter: Adapter
    state: Payload
    rounds: tuple[RoundRecord, ...]
    reason: str


def run(federation: SimulatedFederation, open_session: OpenSession) -> Result:
    """Run a federation to its end.

    `open_session(ordinal, seed)` is called for each job of a client. It returns a session with the model at its base
    weights and seeded initial values, with `session.seed == seed` and the federation's `session.federation_seed`.
    Raises the exceptions of the halves (such as UpdateRefused), and ValueError for an invalid trainable or settings.
    """
    registry.check_trainable(federation.algorithm, federation.config, federation.trainable)
    for settings in federation.settings.values():
        federation.config.check_settings(settings)
    # `open_session` may use the global generators as well.
    with torch.random.fork_rng():
        return _Run(federation, open_session).to_end()


class _Run:
    """The state of one run: the data that the coordinator stores in its database and the workers on their disks."""

    def __init__(self, federation: SimulatedFederation, open_session: OpenSession) -> None:
        self._federation = federation
        self._open = open_session
        arguments = federation.algorithm, federation.config, federation.trainable
        self._server: ServerHalf = registry.server_half(*arguments)
        self._client: ClientHalf = registry.client_half(*arguments)
        self._views: tuple[View, ...] = (
            ("shared", "own") if registry.algorithm(federation.algorithm).personal else ("shared",)
        )
        self._ordinals = range(federation.clients)
        self._examples = {ordinal: open_session(ordinal, 0).examples for ordinal in self._ordinals}
        model = open_session(0, 0).facts
        self._state = _through_bytes(self._server.start(model, federation.seed, federation.initial))
        self._memories: dict[int, Payload] = {}
        self._notes: dict[int, Payload] = {}
        self._rounds_taken: dict[int, int] = {}
        self._records: list[RoundRecord] = []

    def to_end(self) -> Result:
        reason = None
        while reason is None:
            kind: RoundKind = "prepare" if self._state.facts.get("phase") == "prepare" else "train"
            reason = self._round(kind) or self._stop_reason()
        return Result(self._server.export(self._state), self._state, tuple(self._records), reason)

    def _round(self, kind: RoundKind) -> str | None:
        federation = self._federation
        number = 1 + sum(record.kind == kind for record in self._records)
        step = RoundFacts(number, kind, federation.rounds, federation.clients)
        began = time.process_time()
        cohort = self._draw(step)
        instructions = self._plan(cohort, step)
        updates = [self._train(ordinal, instructions[ordinal], step) for ordinal in cohort]
        outcome = self._server.aggregate(self._state, updates, step)
        self._state = _through_bytes(outcome.state)
        self._notes |= {ordinal: _through_bytes(note) for ordinal, note in outcome.notes.items()}
        seconds = time.process_time() - began
        metrics = dict(outcome.metrics)
        if kind == "train" and schedule.evaluation_due(number, federation.rounds, federation.evaluate_every):
            metrics |= self._evaluate(step)
        down = sum(len(instructions[ordinal].encode()) for ordinal in cohort)
        up = sum(len(update.payload.encode()) for update in updates)
        self._records.append(RoundRecord(number, kind, cohort, metrics, down, up, seconds))
        return outcome.stop_reason

    def _draw(self, step: RoundFacts) -> tuple[int, ...]:
        size = self._federation.clients_per_round
        if size is None or step.kind == "prepare" or self._state.facts.get("cohort") == "all":
            size = self._federation.clients
        return schedule.draw(self._federation.seed, step.kind, step.number, 1, self._ordinals, (), (), size)

    def _plan(self, cohort: Sequence[int], step: RoundFacts) -> dict[int, Payload]:
        clients = [
            ClientFacts(
                ordinal=ordinal,
                name=f"client {ordinal}",
                examples=self._examples[ordinal],
                capabilities=self._federation.capabilities.get(ordinal, {}),
                settings=self._federation.settings.get(ordinal, {}),
                note=self._notes.get(ordinal),
                rounds_taken=self._rounds_taken.get(ordinal, 0),
            )
            for ordinal in cohort
        ]
        instructions = self._server.plan(self._state, clients, step)
        return {ordinal: _through_bytes(instructions[ordinal]) for ordinal in cohort}

    def _train(self, ordinal: int, instruction: Payload, step: RoundFacts) -> ClientUpdate:
        seed = schedule.job_seed(self._federation.seed, step.kind, step.number, ordinal, "train")
        session = self._open(ordinal, seed)
        torch.manual_seed(seed)
        result = self._client.run(instruction, session, self._memories.get(ordinal))
        update = _through_bytes(result.update)
        self._server.check(instruction, update)
        self._memories.pop(ordinal, None)
        if result.memory is not None:
            self._memories[ordinal] = _through_bytes(result.memory)
        self._rounds_taken[ordinal] = self._rounds_taken.get(ordinal, 0) + 1
        note = self._notes.get(ordinal)
        return ClientUpdate(ordinal, self._examples[ordinal], result.weight, update, result.metrics, note)

    def _evaluate(self, train_step: RoundFacts) -> dict[str, float]:
        step = replace(train_step, kind="evaluate")
        instructions = self._plan(self._ordinals, step)
        metrics: dict[str, float] = {}
        for view in self._views:
            results = [self._evaluate_one(ordinal, instructions[ordinal], step, view) for ordinal in self._ordinals]
            prefix = "" if view == "shared" else "own_"
            metrics |= {prefix + name: value for name, value in mean_metrics(results).items()}
        return metrics

    def _evaluate_one(self, ordinal: int, instruction: Payload, step: RoundFacts, view: View) -> Mapping[str, float]:
        seed = schedule.job_seed(self._federation.seed, "train", step.number, ordinal, "evaluate")
        session = self._open(ordinal, seed)
        torch.manual_seed(seed)
        self._client.apply(instruction, session, self._memories.get(ordinal), view)
        return session.evaluate()

    def _stop_reason(self) -> str | None:
        federation = self._federation
        history = [record.metrics for record in self._records if record.kind == "train"]
        return schedule.stop_reason(
            history, federation.rounds, federation.stop_metric, federation.stop_target, federation.stop_patience
        )


def mean_metrics(results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over the clients that report it, weighted by `examples`. `examples` is the sum."""
    means = {}
    for name in sorted({name for metrics in results for name in metrics} - {"examples"}):
        rows = [(metrics["examples"], metrics[name]) for metrics in results if name in metrics]
        means[name] = math.fsum(n * value for n, value in rows) / math.fsum(n for n, _ in rows)
    return means | {"examples": math.fsum(metrics["examples"] for metrics in results)}


def _through_bytes(payload: Payload) -> Payload:
    return Payload.decode(payload.encode())
