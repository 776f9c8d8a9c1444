"""Runs the server half of an algorithm. The only file of the coordinator that touches tensors.

Plain values and digests in, plain values and stored artifacts out: no database, so that no transaction is open
while it works. What it makes is a function of what it is given, so doing it twice does no harm.
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
    AgainInput,
    AggregateInput,
    CheckInput,
    ClientInput,
    Cut,
    JoinInput,
    MadeAggregate,
    MadePlan,
    MadeShard,
    MadeState,
    Method,
    Omission,
    PlanInput,
    Repetition,
    ShardInput,
    StartInput,
    UpdateInput,
    Verdicts,
)
from coordinator.rounds.work_folders import own_folder
from coordinator.settings import get_settings
from federated import registry
from federated.algorithm_kit.number_checks import check_finite, with_finite_checks
from federated.algorithm_kit.shared_tensors import dissenters
from federated.contract import ClientFacts, ClientUpdate, Outcome, RoundFacts, ServerHalf
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


def start(given: StartInput) -> MadeState:
    """The federation's first state. Raises ValueError if the initial adapter does not fit the model."""
    with _working(given.method) as (half, folder):
        model = ModelFacts.model_validate(given.method.model)
        initial = None if given.initial_digest is None else _initial(given, given.initial_digest, model)
        state = half.start(model, given.method.seed, initial)
        return _made_state(state, folder)


def plan(given: PlanInput) -> MadePlan:
    """One instruction for each client; equal ones are stored once."""
    if not given.clients:
        return MadePlan({})
    with _working(given.method) as (half, folder):
        clients = [_client(client) for client in given.clients]
        instructions = half.plan(_open(given.state_digest), clients, _step(given.method))
        written: dict[int, StoredObject] = {}
        for payload in {id(payload): payload for payload in instructions.values()}.values():
            written[id(payload)] = _put(payload, folder / "instruction")
        return MadePlan({ordinal: written[id(payload)] for ordinal, payload in sorted(instructions.items())})


def check(given: CheckInput) -> Verdicts:
    """Accepts or rejects each update: finite, within the federation's norm, and as the algorithm wants it."""
    with _working(given.method) as (half, _):
        problems: dict[str, Mapping[str, Any] | None] = {}
        norms: dict[str, float] = {}
        for job_id, instruction, update in given.updates:
            verdict = update_checks.norm_or_problem(half, instruction, update, given.max_update_norm)
            if isinstance(verdict, float):
                problems[job_id], norms[job_id] = None, verdict
            else:
                problems[job_id] = verdict
        return Verdicts(problems, norms)


def aggregate(given: AggregateInput) -> MadeAggregate | Cut | Omission:
    """The next state of the accepted updates, and its adapter if the round was one of training.

    A state larger than `shard_bytes` is only cut, where the algorithm can do it in parts. Of updates that cannot be
    aggregated together those are named that have to be left out.
    """
    if apart := dissenters({update.ordinal: _open(update.digest) for update in given.updates}):
        return Omission({ordinal: update_checks.differs(name) for ordinal, name in apart.items()})
    state = _open(given.state_digest)
    shards = cut(state, registry.algorithm(given.method.algorithm).shard_by, get_settings().shard_bytes)
    if len(shards) > 1:
        return Cut(shards)
    with _working(given.method) as (half, folder):
        try:
            return _made_aggregate(half, given, _outcome(half, given), folder)
        except update_checks.FAILURES as error:
            return update_checks.omission(given, folder, error, partial(_made_for_nothing, half, None))


def aggregate_shard(given: ShardInput) -> MadeShard | Omission:
    """A part of the next state of the accepted updates."""
    with _working(given.whole.method) as (half, folder):
        try:
            outcome = _outcome(half, given.whole, given.groups)
            notes = _put_notes(outcome, folder)
            state = _put(outcome.state, folder / STATE)
            return MadeShard(state, _finite(outcome.metrics), outcome.stop_reason, notes, environment())
        except update_checks.FAILURES as error:
            return update_checks.omission(given.whole, folder, error, partial(_made_for_nothing, half, given.groups))


def join(given: JoinInput) -> MadeAggregate | Omission:
    """The next state and its adapter, of all its parts: the same bytes as without shards."""
    with _working(given.whole.method) as (half, folder):
        state, parts = _open(given.whole.state_digest), [_part(made) for made in given.parts]
        try:
            outcome = half.join(state, parts, _step(given.whole.method))
            return _made_aggregate(half, given.whole, outcome, folder)
        except update_checks.FAILURES as error:
            return update_checks.omission(given.whole, folder, error, partial(_made_for_nothing, half, None))


def put_again(given: AgainInput) -> None:
    """Puts what a round made into the store once more; where its state is kept, the adapter of that alone."""
    with _working(given.whole.method) as (half, folder):
        if given.state_digest is None:
            _made_aggregate(half, given.whole, _outcome(half, given.whole), folder)
        else:
            shutil.copyfile(artifacts.whole_file(given.state_digest), folder / STATE)
            _put_adapter(half, given.whole, folder)


def repeat(given: AggregateInput, kept: Mapping[str, str]) -> Repetition:
    """Does an aggregation again and holds it against what is kept: digests by name, of the state and the adapter's
    files. Stores nothing.
    """
    with _working(given.method) as (half, folder):
        _outcome(half, given).state.write(folder / STATE)
        made = {STATE: folder / STATE}
        if given.method.kind == "train":
            made |= {path.name: path for path in _export(half, given, folder)[1]}
        differences = {}
        for name, digest in kept.items():
            if name not in made or artifacts.digest_of(made[name]) != digest:
                differences[name] = _difference(made[name], digest) if name in made else math.inf
        return Repetition(differences, environment())


@contextmanager
def _working(method: Method) -> Iterator[tuple[ServerHalf, Path]]:
    """The server half, and a folder of its own that goes afterwards."""
    settings = get_settings()
    torch.set_num_threads(settings.aggregation_threads)
    trainable = TRAINABLE.validate_python(method.trainable)
    config = registry.make_config(method.algorithm, method.config)
    with own_folder(settings.data_folder / "conductor") as folder:
        yield registry.server_half(method.algorithm, config, trainable), folder


def _step(method: Method) -> RoundFacts:
    return RoundFacts(method.number, method.kind, method.rounds, method.registered)  # type: ignore[arg-type]


def _open(digest: str) -> Payload:
    return Payload.open(artifacts.whole_file(digest))


def _initial(given: StartInput, digest: str, model: ModelFacts) -> Payload:
    """An earlier adapter as this algorithm goes on from it."""
    config = given.initial_config_digest
    fields = None if config is None else json.loads(artifacts.whole_file(config).read_bytes())
    trainable = TRAINABLE.validate_python(given.method.trainable)
    return initial_adapter(_open(digest), fields, model, trainable)


def _open_note(digest: str | None) -> Payload | None:
    return None if digest is None else _open(digest)


def _put(payload: Payload, path: Path) -> StoredObject:
    payload.write(path)
    return artifacts.put_file(path)


def _made_state(state: Payload, folder: Path) -> MadeState:
    phase = str(state.facts.get("phase", "train"))
    return MadeState(_put(state, folder / STATE), phase, state.facts.get("cohort") == "all")


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


def _made_for_nothing(half: ServerHalf, groups: tuple[str, ...] | None, given: AggregateInput, folder: Path) -> None:
    outcome = _outcome(half, given, groups)
    outcome.state.write(folder / STATE)
    for note in outcome.notes.values():
        note.write(folder / "note")
    if groups is None and given.method.kind == "train":
        _export(half, given, folder)


def _outcome(half: ServerHalf, given: AggregateInput, groups: tuple[str, ...] | None = None) -> Outcome:
    state, updates = _open(given.state_digest), [_update(update) for update in given.updates]
    if groups is not None:
        by = registry.algorithm(given.method.algorithm).shard_by
        state = part(state, groups, by)
        updates = [replace(update, payload=part(update.payload, groups, by)) for update in updates]
    outcome = half.aggregate(state, updates, _step(given.method))
    notes = {ordinal: with_finite_checks(note) for ordinal, note in outcome.notes.items()}
    return replace(outcome, state=with_finite_checks(outcome.state), notes=notes)


def _part(made: MadeShard) -> Outcome:
    notes = {ordinal: _open(note.digest) for ordinal, note in made.notes.items()}
    return Outcome(_open(made.state.digest), made.metrics, made.finished, notes)


def _made_aggregate(half: ServerHalf, given: AggregateInput, outcome: Outcome, folder: Path) -> MadeAggregate:
    notes = _put_notes(outcome, folder)
    made = _made_state(outcome.state, folder)
    kind, files = _put_adapter(half, given, folder) if given.method.kind == "train" else (None, {})
    return MadeAggregate(made, _finite(outcome.metrics), outcome.stop_reason, notes, kind, files, environment())


def _put_adapter(half: ServerHalf, given: AggregateInput, folder: Path) -> tuple[str, dict[str, StoredObject]]:
    signing.ready()  # before anything is recorded: a key that cannot be used holds the round up, and says so
    kind, written = _export(half, given, folder)
    return kind, {path.name: artifacts.put_file(path) for path in written}


def _put_notes(outcome: Outcome, folder: Path) -> dict[int, StoredObject]:
    return {ordinal: _put(note, folder / "note") for ordinal, note in sorted(outcome.notes.items())}


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def _export(half: ServerHalf, given: AggregateInput, folder: Path) -> tuple[str, list[Path]]:
    """The adapter of the state that lies in `folder`: its kind, and the files written."""
    adapter = half.export(Payload.open(folder / STATE))
    for name, tensor in adapter.tensors.items():
        check_finite(name, tensor)
    files = folder / "adapter"
    files.mkdir()
    trainable = TRAINABLE.validate_python(given.method.trainable)
    model = ModelFacts.model_validate(given.method.model)
    return adapter.kind, write_adapter(files, adapter, trainable, model, given.base_model, given.card)


def _difference(path: Path, digest: str) -> float:
    """Largest relative difference of a made file's tensors to the kept ones; infinity for what holds none."""
    try:
        return largest_difference(Payload.open(path), _open(digest))
    except HeaderError:
        return math.inf
