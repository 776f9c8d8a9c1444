"""Conductor: runs the server half of an algorithm. No other module of the coordinator computes with tensors.

Its functions take plain values and digests and return plain values and stored artifacts. It uses no database, so no
transaction is open while it computes. Its results depend on the inputs alone, so a repetition does no harm.
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from coordinator.artifacts import service as artifacts
from coordinator.artifacts.service import StoredObject
from coordinator.provenance import signing
from coordinator.rounds import update_checks
from coordinator.rounds.schemas import (
    AggregateInput,
    AggregateResult,
    CheckInput,
    ClientInput,
    JoinInput,
    Method,
    Omission,
    PlanInput,
    PlanResult,
    Repetition,
    RestoreInput,
    ShardInput,
    ShardLayout,
    ShardResult,
    StartInput,
    StateResult,
    UpdateInput,
    Verdicts,
)
from coordinator.rounds.work_folders import own_folder
from coordinator.settings import get_settings
from federated import registry
from federated.algorithm_kit.number_checks import check_finite, with_finite_checks
from federated.algorithm_kit.shared_tensors import dissenters
from federated.contract import ClientFacts, ClientUpdate, Outcome, RoundFacts, ServerHalf
from federated.digests import file_digest
from federated.environment import environment
from federated.export.adapter_files import write_adapter
from federated.export.initial_adapter import initial_adapter
from federated.maths.tensor_diff import largest_difference
from federated.payloads.header import HeaderError
from federated.payloads.payload import Payload
from federated.payloads.shards import cut, part
from federated.trainable import ModelFacts, Trainable

STATE = "state"
TRAINABLE: TypeAdapter[Trainable] = TypeAdapter(Trainable)


def start(inputs: StartInput) -> StateResult:
    """The federation's first state. Raises ValueError if the initial adapter does not fit the model."""
    with _working(inputs.method) as (half, folder):
        model = ModelFacts.model_validate(inputs.method.model)
        initial = None if inputs.initial_digest is None else _initial(inputs, inputs.initial_digest, model)
        state = half.start(model, inputs.method.seed, initial)
        return _put_state(state, folder)


def plan(inputs: PlanInput) -> PlanResult:
    """One instruction for each client. Equal ones are stored once."""
    if not inputs.clients:
        return PlanResult({})
    with _working(inputs.method) as (half, folder):
        clients = [_client(client) for client in inputs.clients]
        instructions = half.plan(_open(inputs.state_digest), clients, _step(inputs.method))
        instructions_by_id: dict[int, StoredObject] = {}
        for payload in {id(payload): payload for payload in instructions.values()}.values():
            instructions_by_id[id(payload)] = _put(payload, folder / "instruction")
        return PlanResult(
            {ordinal: instructions_by_id[id(payload)] for ordinal, payload in sorted(instructions.items())}
        )


def check(inputs: CheckInput) -> Verdicts:
    """Accepts each update that is finite, within the federation's norm, and valid for the algorithm."""
    with _working(inputs.method) as (half, _):
        problems: dict[str, Mapping[str, Any] | None] = {}
        norms: dict[str, float] = {}
        for job_id, instruction, update in inputs.updates:
            verdict = update_checks.norm_or_problem(half, instruction, update, inputs.max_update_norm)
            if isinstance(verdict, float):
                problems[job_id], norms[job_id] = None, verdict
            else:
                problems[job_id] = verdict
        return Verdicts(problems, norms)


def aggregate(inputs: AggregateInput) -> AggregateResult | ShardLayout | Omission:
    """The next state from the accepted updates, with its adapter in a train round.

    A state larger than `shard_bytes` gives a ShardLayout if the algorithm can aggregate in parts. Updates that cannot
    be aggregated together give an Omission with those to leave out.
    """
    if tensor_names := dissenters({update.ordinal: _open(update.digest) for update in inputs.updates}):
        return Omission({ordinal: update_checks.differs(name) for ordinal, name in tensor_names.items()})
    state = _open(inputs.state_digest)
    shards = cut(state, registry.algorithm(inputs.method.algorithm).shard_by, get_settings().shard_bytes)
    if len(shards) > 1:
        return ShardLayout(shards)
    with _working(inputs.method) as (half, folder):
        try:
            return _put_aggregate(half, inputs, _outcome(half, inputs), folder)
        except update_checks.FAILURES as error:
            return update_checks.omission(inputs, folder, error, partial(_trial_run, half, None))


def aggregate_shard(inputs: ShardInput) -> ShardResult | Omission:
    """A part of the next state, from the accepted updates."""
    with _working(inputs.whole.method) as (half, folder):
        try:
            outcome = _outcome(half, inputs.whole, inputs.groups)
            notes = _put_notes(outcome, folder)
            state = _put(outcome.state, folder / STATE)
            return ShardResult(state, _finite(outcome.metrics), outcome.stop_reason, notes, environment())
        except update_checks.FAILURES as error:
            return update_checks.omission(inputs.whole, folder, error, partial(_trial_run, half, inputs.groups))


def join(inputs: JoinInput) -> AggregateResult | Omission:
    """The next state and its adapter from all parts. The bytes are those of an aggregation without shards."""
    with _working(inputs.whole.method) as (half, folder):
        state, parts = _open(inputs.whole.state_digest), [_part(shard) for shard in inputs.parts]
        try:
            outcome = half.join(state, parts, _step(inputs.whole.method))
            return _put_aggregate(half, inputs.whole, outcome, folder)
        except update_checks.FAILURES as error:
            return update_checks.omission(inputs.whole, folder, error, partial(_trial_run, half, None))


def restore(inputs: RestoreInput) -> None:
    """Stores the results of a round again; only the adapter if its state is still stored."""
    with _working(inputs.whole.method) as (half, folder):
        if inputs.state_digest is None:
            _put_aggregate(half, inputs.whole, _outcome(half, inputs.whole), folder)
        else:
            shutil.copyfile(artifacts.whole_file(inputs.state_digest), folder / STATE)
            _put_adapter(half, inputs.whole, folder)


def repeat(inputs: AggregateInput, digests: Mapping[str, str]) -> Repetition:
    """Repeats an aggregation and compares it with `digests`, those of the state and the adapter's files by name.

    Stores nothing.
    """
    with _working(inputs.method) as (half, folder):
        _outcome(half, inputs).state.write(folder / STATE)
        paths = {STATE: folder / STATE}
        if inputs.method.kind == "train":
            paths |= {path.name: path for path in _export(half, inputs, folder)[1]}
        differences = {}
        for name, digest in digests.items():
            if name not in paths or file_digest(paths[name]) != digest:
                differences[name] = _difference(paths[name], digest) if name in paths else math.inf
        return Repetition(differences, environment())


@contextmanager
def _working(method: Method) -> Iterator[tuple[ServerHalf, Path]]:
    """The server half, and a folder of its own that is deleted afterwards."""
    settings = get_settings()
    torch.set_num_threads(settings.aggregation_threads)
    trainable = TRAINABLE.validate_python(method.trainable)
    config = registry.make_config(method.algorithm, method.config)
    with own_folder(settings.data_folder / "conductor") as folder:
        yield registry.server_half(method.algorithm, config, trainable), folder


def _step(method: Method) -> RoundFacts:
    return RoundFacts(method.number, method.kind, method.rounds, method.client_count)  # type: ignore[arg-type]


def _open(digest: str) -> Payload:
    return Payload.open(artifacts.whole_file(digest))


def _initial(inputs: StartInput, digest: str, model: ModelFacts) -> Payload:
    """An earlier adapter as the initial payload of this algorithm."""
    config = inputs.initial_config_digest
    fields = None if config is None else json.loads(artifacts.whole_file(config).read_bytes())
    trainable = TRAINABLE.validate_python(inputs.method.trainable)
    return initial_adapter(_open(digest), fields, model, trainable)


def _open_note(digest: str | None) -> Payload | None:
    return None if digest is None else _open(digest)


def _put(payload: Payload, path: Path) -> StoredObject:
    payload.write(path)
    return artifacts.put_file(path)


def _put_state(state: Payload, folder: Path) -> StateResult:
    phase = str(state.facts.get("phase", "train"))
    return StateResult(_put(state, folder / STATE), phase, state.facts.get("cohort") == "all")


def _client(client: ClientInput) -> ClientFacts:
    return ClientFacts(
        ordinal=client.ordinal,
        name=client.name,
        examples=client.examples,
        capabilities=client.capabilities,
        settings=client.settings,
        note=_open_note(client.note_digest),
        rounds_taken=client.rounds_taken,
    )


def _update(update: UpdateInput) -> ClientUpdate:
    return ClientUpdate(
        ordinal=update.ordinal,
        examples=update.examples,
        weight=update.weight,
        payload=_open(update.digest),
        metrics=update.metrics,
        note=_open_note(update.note_digest),
    )


def _trial_run(half: ServerHalf, groups: tuple[str, ...] | None, inputs: AggregateInput, folder: Path) -> None:
    outcome = _outcome(half, inputs, groups)
    outcome.state.write(folder / STATE)
    for note in outcome.notes.values():
        note.write(folder / "note")
    if groups is None and inputs.method.kind == "train":
        _export(half, inputs, folder)


def _outcome(half: ServerHalf, inputs: AggregateInput, groups: tuple[str, ...] | None = None) -> Outcome:
    state, updates = _open(inputs.state_digest), [_update(update) for update in inputs.updates]
    if groups is not None:
        by = registry.algorithm(inputs.method.algorithm).shard_by
        state = part(state, groups, by)
        updates = [replace(update, payload=part(update.payload, groups, by)) for update in updates]
    outcome = half.aggregate(state, updates, _step(inputs.method))
    notes = {ordinal: with_finite_checks(note) for ordinal, note in outcome.notes.items()}
    return replace(outcome, state=with_finite_checks(outcome.state), notes=notes)


def _part(shard: ShardResult) -> Outcome:
    notes = {ordinal: _open(note.digest) for ordinal, note in shard.notes.items()}
    return Outcome(_open(shard.state.digest), shard.metrics, shard.finished, notes)


def _put_aggregate(half: ServerHalf, inputs: AggregateInput, outcome: Outcome, folder: Path) -> AggregateResult:
    notes = _put_notes(outcome, folder)
    state = _put_state(outcome.state, folder)
    kind, files = _put_adapter(half, inputs, folder) if inputs.method.kind == "train" else (None, {})
    return AggregateResult(state, _finite(outcome.metrics), outcome.stop_reason, notes, kind, files, environment())


def _put_adapter(half: ServerHalf, inputs: AggregateInput, folder: Path) -> tuple[str, dict[str, StoredObject]]:
    signing.ready()  # before anything is recorded: an unusable key holds the round up
    kind, paths = _export(half, inputs, folder)
    return kind, {path.name: artifacts.put_file(path) for path in paths}


def _put_notes(outcome: Outcome, folder: Path) -> dict[int, StoredObject]:
    return {ordinal: _put(note, folder / "note") for ordinal, note in sorted(outcome.notes.items())}


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def _export(half: ServerHalf, inputs: AggregateInput, folder: Path) -> tuple[str, list[Path]]:
    """Writes the adapter of the state in `folder`. Returns its kind and the files."""
    adapter = half.export(Payload.open(folder / STATE))
    for name, tensor in adapter.tensors.items():
        check_finite(name, tensor)
    files = folder / "adapter"
    files.mkdir()
    trainable = TRAINABLE.validate_python(inputs.method.trainable)
    model = ModelFacts.model_validate(inputs.method.model)
    return adapter.kind, write_adapter(files, adapter, trainable, model, inputs.base_model, inputs.card)


def _difference(path: Path, digest: str) -> float:
    """Largest relative difference of a file's tensors to the stored ones. Infinity for a file without tensors."""
    try:
        return largest_difference(Payload.open(path), _open(digest))
    except HeaderError:
        return math.inf
