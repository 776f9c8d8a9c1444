"""Claims the next step of a round for one task, with all that a conductor needs to do it.

A claim raises the round's `version`: whoever computed for an older version finds that out when it records, and
throws its result away. `claimed_until` keeps a second task from computing the same at once; it is renewed while
the owner works, and passes when the owner died.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from coordinator.clients import service as clients
from coordinator.jobs import service as jobs
from coordinator.models import Client, Federation, Round, Shard, Worker
from coordinator.rounds import lifecycle, repository
from coordinator.rounds.lifecycle import Aggregate, Check, Evaluate, Join, Plan, Start, Wait
from coordinator.rounds.schemas import (
    AggregateInput,
    CheckInput,
    ClientInput,
    Input,
    JoinInput,
    Method,
    PlanInput,
    ShardInput,
    StartInput,
    UpdateInput,
)
from coordinator.rounds.service import sharding, snapshots, transitions
from coordinator.rounds.service.sharding import ShardClaim
from coordinator.settings import get_settings

ConductorStep = Start | Plan | Check | Aggregate | Join | Evaluate


@dataclass(frozen=True, slots=True)
class Claim:
    """A step that one task may compute: `given` to the conductor, recorded under `version`."""

    federation_id: str
    round_id: str
    version: int
    step: ConductorStep
    inputs: Input


def claim(session: Session, round_id: str, now: datetime) -> Claim | None:
    """Does all steps that need no tensors; then claims the one that does. None: nothing to do, or not now."""
    row = transitions.lock(session, round_id)
    while row is not None:
        federation, round_ = row
        if round_.state in lifecycle.TERMINAL or (round_.claimed_until is not None and round_.claimed_until > now):
            return None
        (snapshot,) = snapshots.snapshots(session, [round_], now)
        step = lifecycle.next_step(snapshot, snapshots.rules(federation), now)
        if isinstance(step, Wait):
            return None
        if isinstance(step, ConductorStep):
            if transitions.fail_if_given_up(session, round_, round_, now):
                return None
            return _claim_step(session, federation, round_, step, now)
        row = federation, transitions.apply(session, federation, round_, snapshot, step, now)
    return None


def claim_shard(session: Session, shard_id: str, now: datetime) -> ShardClaim | None:
    """Claims a part of an aggregation. None: nothing to do, or somebody does it."""
    rows = sharding.lock(session, shard_id)
    if rows is None:
        return None
    federation, round_, row = rows
    if row.claimed_until is not None and row.claimed_until > now:
        return None
    if transitions.fail_if_given_up(session, round_, row, now):
        return None
    row.version += 1
    row.claimed_until = _until(now)
    inputs = ShardInput(_whole(session, federation, round_), tuple(row.groups))
    return ShardClaim(federation.id, round_.id, row.id, row.version, inputs)


def renew(session: Session, claim: Claim | ShardClaim, now: datetime) -> bool:
    """Keeps the claim for another `claim_seconds`; False if it was lost."""
    if isinstance(claim, ShardClaim):
        statement = update(Shard).where(Shard.id == claim.shard_id, Shard.version == claim.version)
        ids = session.execute(statement.values(claimed_until=_until(now)).returning(Shard.id))
    else:
        statement = update(Round).where(Round.id == claim.round_id, Round.version == claim.version)
        ids = session.execute(statement.values(claimed_until=_until(now)).returning(Round.id))
    return ids.one_or_none() is not None


def _until(now: datetime) -> datetime:
    return now + timedelta(seconds=get_settings().claim_seconds)


def _claim_step(session: Session, federation: Federation, round_: Round, step: ConductorStep, now: datetime) -> Claim:
    if isinstance(step, Aggregate):
        transitions.stop_collecting(session, round_, step, now)
    round_.version += 1
    round_.claimed_until = _until(now)
    return Claim(federation.id, round_.id, round_.version, step, _inputs(session, federation, round_, step, now))


def _inputs(session: Session, federation: Federation, round_: Round, step: ConductorStep, now: datetime) -> Input:
    match step:
        case Start():
            return start_input(federation, round_)
        case Plan():
            return plan_input(session, federation, round_, round_.cohort or [])
        case Check():
            return _check(session, federation, round_, step)
        case Aggregate():
            return _whole(session, federation, round_)
        case Join():
            return JoinInput(_whole(session, federation, round_), sharding.shard_results(session, round_))
        case Evaluate():
            evaluators = transitions.evaluating_clients(session, federation, round_, now)
            return evaluation_input(session, federation, round_, evaluators)


def start_input(federation: Federation, round_: Round) -> StartInput:
    """What the federation's first state is made of."""
    initial = federation.definition["initial_adapter"] or {}
    return StartInput(_method(federation, round_), initial.get("digest"), initial.get("config_digest"))


def plan_input(session: Session, federation: Federation, round_: Round, cohort: Collection[int]) -> PlanInput:
    """What the instructions of a cohort are made of."""
    cohort_clients = clients.by_ordinals(session, federation.id, list(cohort))
    return _plan(session, _method(federation, round_), str(round_.start_digest), cohort_clients)


def evaluation_input(
    session: Session, federation: Federation, round_: Round, evaluators: Iterable[Client]
) -> PlanInput:
    """What the instructions of those that evaluate are made of."""
    return _plan(session, _method(federation, round_, "evaluate"), str(round_.state_digest), evaluators)


def _whole(session: Session, federation: Federation, round_: Round) -> AggregateInput:
    rows = repository.all_clients(session, federation.id)
    notes = {str(client.ordinal): client.note_digest for client in rows if client.note_digest}
    return aggregate_input(session, federation, round_, notes)


def _method(federation: Federation, round_: Round, kind: str | None = None) -> Method:
    definition = federation.definition
    return Method(
        algorithm=definition["algorithm"],
        config=definition["config"],
        trainable=definition["trainable"],
        model=federation.model_facts or {},
        seed=federation.seed,
        number=round_.number,
        kind=kind or round_.kind,
        rounds=definition["rounds"],
        client_count=round_.registered or 0,
    )


def _plan(session: Session, method: Method, state_digest: str, participants: Iterable[Client]) -> PlanInput:
    inputs = tuple(_client(session, client) for client in participants)
    return PlanInput(method, state_digest, inputs)


def _client(session: Session, client: Client) -> ClientInput:
    worker = session.get_one(Worker, client.worker_id)
    return ClientInput(
        ordinal=client.ordinal,
        name=client.name,
        examples=client.examples or 0,
        capabilities=worker.capabilities,
        settings=client.settings,
        note_digest=client.note_digest,
        rounds_taken=client.rounds_taken,
    )


def _check(session: Session, federation: Federation, round_: Round, step: Check) -> CheckInput:
    rows = {job.id: job for job in jobs.of_round(session, round_.id, "train")}
    updates = tuple((key, str(rows[key].instruction_digest), str(rows[key].update_digest)) for key in step.job_ids)
    return CheckInput(_method(federation, round_), updates, federation.definition["max_update_norm"])


def aggregate_input(
    session: Session, federation: Federation, round_: Round, notes: Mapping[str, str]
) -> AggregateInput:
    """What the round is, or was, aggregated from; `notes` are the digests of its clients' notes by ordinal."""
    jobs_by_ordinal = snapshots.accepted_jobs(session, round_)
    updates = []
    for ordinal, job in jobs_by_ordinal:
        submission: dict[str, Any] = job.submission or {}
        update_ = submission["update"]
        updates.append(
            UpdateInput(
                ordinal=ordinal,
                examples=update_["examples"],
                weight=update_["weight"],
                digest=str(job.update_digest),
                metrics=submission["metrics"],
                note_digest=notes.get(str(ordinal)),
                norm=submission.get("norm", 0.0),
            )
        )
    base_model = federation.definition["base_model"]["id"]
    card = {"federation": federation.name, "round": round_.number, "clients": len(updates)}
    return AggregateInput(_method(federation, round_), str(round_.start_digest), tuple(updates), base_model, card)
