"""The three kinds of job on an open workbench, each to the document that is submitted."""

import platform
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from federated import registry
from federated.contract import Algorithm, AlgorithmConfig, ClientHalf, View
from federated.payloads.header import HeaderError
from federated.payloads.payload import Payload
from federated.protocol import Description, Lease, SubmitRequest, UpdateSubmission, Work, is_metric
from worker_agent.training import limits
from worker_agent.training.session import Report, Session, Workbench
from worker_agent.training.trial import try_model

UPDATE_FILE = "update.safetensors"
MEMORY_FILE = "memory.safetensors"


class InstructionInvalid(Exception):
    """A job whose instruction or configuration cannot be read; trying again does not help."""


class AlgorithmMissing(Exception):
    """This agent does not have the federation's algorithm, or another revision of it."""


@dataclass(frozen=True, slots=True)
class JobFiles:
    """Where a job's payloads are read from, and the folder that update and memory are written into."""

    instruction: Path | None
    memory: Path | None
    folder: Path


@dataclass(frozen=True, slots=True)
class JobDone:
    """The submission, and the names of the files in the job's folder."""

    submission: SubmitRequest
    update: str | None = None
    memory: str | None = None


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def total(self) -> dict[str, float]:
        return {**self._seconds, "total": time.perf_counter() - self._began}


def run_job(bench: Workbench, lease: Lease, files: JobFiles, report: Report) -> JobDone:
    """Do one job.

    Raises JobRefused, InstructionInvalid, AlgorithmMissing, JobInterrupted (from `report`), and what a half raises.
    """
    clock = _Clock()
    kinds = {"describe": _describe, "train": _train, "evaluate": _evaluate}
    return kinds[lease.kind](bench, lease, files, report, clock)


def _describe(bench: Workbench, lease: Lease, files: JobFiles, report: Report, clock: _Clock) -> JobDone:
    algorithm, _ = _algorithm(lease.work)
    session = _open(bench, lease, report, clock)
    try_model(session, lease.work.trainable, gradients=algorithm.gradients)
    held_out = len(session.data.held_out)
    description = Description(
        model=session.facts,
        examples=session.examples,
        evaluation_examples=held_out if limits.may_evaluate(held_out, bench.settings.policy) else 0,
        labels=_labels(session, lease.work.task.labels or (), bench.settings.policy.min_examples),
    )
    return JobDone(_submission(session, clock, {}, description=description))


def _labels(session: Session, labels: Sequence[str], fewest: int) -> tuple[str, ...]:
    """The labels that so many examples have: that a single one has some label says what it has."""
    classes = [session.data.train.targets, session.data.held_out.targets]
    counts = torch.bincount(torch.cat(classes), minlength=len(labels)).tolist() if labels else []
    return tuple(label for label, count in zip(labels, counts, strict=True) if count >= fewest)


def _train(bench: Workbench, lease: Lease, files: JobFiles, report: Report, clock: _Clock) -> JobDone:
    half, instruction = _client_half(lease.work), _instruction(files)
    session = _open(bench, lease, report, clock)
    began = time.perf_counter()
    result = half.run(instruction, session, _memory(files))
    if not result.is_measurement:
        limits.check_used(len(session.used), bench.settings.policy)
    metrics = dict(result.metrics)
    clock.add("training", metrics.pop("seconds", time.perf_counter() - began))
    digest = result.update.write(files.folder / UPDATE_FILE)
    remembered = None if result.memory is None else result.memory.write(files.folder / MEMORY_FILE)
    update = UpdateSubmission(
        digest=digest, weight=result.weight, examples=session.examples, memory_digest=remembered
    )
    kept = None if remembered is None else MEMORY_FILE
    return JobDone(_submission(session, clock, metrics, update=update), UPDATE_FILE, kept)


def _evaluate(bench: Workbench, lease: Lease, files: JobFiles, report: Report, clock: _Clock) -> JobDone:
    half, instruction, memory = _client_half(lease.work), _instruction(files), _memory(files)
    found: dict[View, dict[str, float]] = {}
    for view in lease.views:
        session = _open(bench, lease, report, clock)
        if not limits.may_evaluate(len(session.data.held_out), bench.settings.policy):
            found[view] = {"examples": 0.0}
            continue
        half.apply(instruction, session, memory, view)
        found[view] = dict(session.evaluate())
    return JobDone(_submission(session, clock, {}, evaluation=found))


def _open(bench: Workbench, lease: Lease, report: Report, clock: _Clock) -> Session:
    """The model at its start and all generators at the job's seed; loading a model draws from them before.

    Raises DataError and EffortError for a job outside the owner's limits.
    """
    began = time.perf_counter()
    session = bench.open(lease.work, lease.dataset, lease.seed, lease.settings, report)
    limits.check_examples(session.examples, bench.settings.policy)
    limits.check_effort(lease, session.examples, bench.settings.policy, session.words)
    random.seed(lease.seed)
    np.random.seed(lease.seed % 2**32)
    torch.manual_seed(lease.seed)
    clock.add("load", time.perf_counter() - began)
    return session


def _client_half(work: Work) -> ClientHalf:
    return registry.client_half(work.algorithm, _algorithm(work)[1], work.trainable)


def _algorithm(work: Work) -> tuple[Algorithm, AlgorithmConfig]:
    try:
        algorithm = registry.algorithm(work.algorithm)
        config = registry.make_config(work.algorithm, work.config)
    except registry.UnknownAlgorithm as error:
        raise AlgorithmMissing(str(error)) from error
    except ValidationError as error:
        raise InstructionInvalid(f"the configuration of {work.algorithm}: {error}") from error
    if algorithm.revision != work.algorithm_revision:
        wanted = f"revision {work.algorithm_revision} of {work.algorithm}"
        raise AlgorithmMissing(f"the federation needs {wanted}, this agent has {algorithm.revision}")
    return algorithm, config


def _instruction(files: JobFiles) -> Payload:
    if files.instruction is None:
        raise InstructionInvalid("the job came without an instruction")
    try:
        return Payload.open(files.instruction)
    except (HeaderError, OSError) as error:
        raise InstructionInvalid(f"the instruction cannot be read: {error}") from error


def _memory(files: JobFiles) -> Payload | None:
    return None if files.memory is None else Payload.open(files.memory)


def _submission(
    session: Session,
    clock: _Clock,
    metrics: Mapping[str, float],
    description: Description | None = None,
    update: UpdateSubmission | None = None,
    evaluation: dict[View, dict[str, float]] | None = None,
) -> SubmitRequest:
    return SubmitRequest(
        description=description,
        update=update,
        evaluation=evaluation and {view: _sendable(found) for view, found in evaluation.items()},
        metrics=_sendable(metrics),
        seconds=clock.total(),
        not_reproducible=session.notes,
        environment=_environment(session),
    )


def _sendable(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without numbers that no coordinator takes: a loss that ran away must not cost the update."""
    return {name: value for name, value in metrics.items() if is_metric(value)}


def _environment(session: Session) -> dict[str, str]:
    """What decides the bits of a result."""
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    return versions | {
        "python": platform.python_version(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "device": session.device.type,
    }
