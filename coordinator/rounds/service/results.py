"""Records what a conductor made, unless somebody else was faster."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from coordinator import events
from coordinator.artifacts import service as artifacts
from coordinator.artifacts.service import Stored
from coordinator.clients import service as clients
from coordinator.jobs import service as jobs
from coordinator.models import Federation, Round
from coordinator.rounds import lifecycle
from coordinator.rounds.facts import name_of
from coordinator.rounds.lifecycle import Evaluate
from coordinator.rounds.schemas import (
    AggregateInput,
    AggregateResult,
    Failure,
    JoinInput,
    Omission,
    PlanResult,
    Result,
    ShardLayout,
    ShardResult,
    StateResult,
    Verdicts,
)
from coordinator.rounds.service import evaluation, provenance_builder, sharding, snapshots, transitions
from coordinator.rounds.service.claims import Claim
from coordinator.rounds.service.sharding import ShardClaim
from federated import schedule
from federated.protocol import JobKind

ALGORITHM_FAILED = "algorithm_failed"
STEP_DIED_TWICE = Failure(
    lifecycle.STEP_DIED, "The process that computed this step died twice; the coordinator's log says how."
)
DEADLINES = {"train": "round_deadline_seconds", "prepare": "prepare_deadline_seconds"}


def record(session: Session, claim: Claim, result: Result, now: datetime) -> bool:
    """Writes the result of a claimed step. False, and nothing is written, if the round has moved on since."""
    rows = _rows_if_current(session, claim)
    if rows is None:
        return False
    federation, round_ = rows
    transitions.release_claim(round_)
    round_.reason = None  # what held it up is over
    match result:
        case StateResult():
            _record_start(session, round_, result)
        case PlanResult() if isinstance(claim.step, Evaluate):
            _record_evaluation(session, federation, round_, result.instructions, now)
        case PlanResult():
            _record_plan(session, federation, round_, result.instructions, now)
        case Verdicts():
            _record_verdicts(session, round_, result, now)
        case Omission():
            transitions.leave_out(session, round_, result.problems)
        case ShardLayout():
            sharding.open_all(session, round_, result)
        case AggregateResult():
            _hold_notes(session, round_, claim)
            _record_aggregate(session, federation, round_, result, now)
    session.flush()
    return True


def record_shard(
    session: Session, claim: ShardClaim, result: ShardResult | Omission | Failure, now: datetime
) -> bool:
    """Writes what a claimed shard made, or why it could not: the round fails. False as for `record`."""
    rows = sharding.lock(session, claim.shard_id)
    if rows is None or rows[2].version != claim.version:
        return False
    _, round_, row = rows
    if isinstance(result, Failure):
        transitions.end(session, round_, lifecycle.FAILED, result.reason, result.detail, now)
    elif isinstance(result, Omission):
        transitions.leave_out(session, round_, result.problems)
    else:
        sharding.record(session, round_, row, result)
    session.flush()
    return True


def fail(session: Session, claim: Claim, failure: Failure, now: datetime) -> bool:
    """The step cannot be done: the round fails; an evaluation is left out. False as for `record`."""
    rows = _rows_if_current(session, claim)
    if rows is None:
        return False
    federation, round_ = rows
    transitions.release_claim(round_)
    if isinstance(claim.step, Evaluate):
        round_.reason_detail = evaluation.NOT_EVALUATED + failure.detail
        _record_evaluation(session, federation, round_, {}, now)
    else:
        transitions.end(session, round_, lifecycle.FAILED, failure.reason, failure.detail, now)
    return True


def count_death(session: Session, claim: Claim | ShardClaim, now: datetime) -> None:
    """The process that computed a claimed step died: the step is free again, or the round fails."""
    if isinstance(claim, ShardClaim):
        rows = sharding.lock(session, claim.shard_id)
        if rows is None or rows[2].version != claim.version:
            return
        _, _, row = rows
        row.deaths += 1
        row.claimed_until = None
        if row.deaths >= lifecycle.MAX_DEATHS:
            record_shard(session, claim, STEP_DIED_TWICE, now)
    elif (still := _rows_if_current(session, claim)) is not None:
        _, round_ = still
        round_.deaths += 1
        round_.claimed_until = None
        if round_.deaths >= lifecycle.MAX_DEATHS:
            fail(session, claim, STEP_DIED_TWICE, now)


def _rows_if_current(session: Session, claim: Claim) -> tuple[Federation, Round] | None:
    rows = transitions.lock(session, claim.round_id)
    if rows is None or rows[1].version != claim.version or rows[1].state in lifecycle.TERMINAL:
        return None
    return rows


def _record_start(session: Session, round_: Round, result: StateResult) -> None:
    artifacts.record(session, result.state, round_.id, "start")
    round_.start_digest = result.state.digest
    round_.kind = result.phase
    round_.everybody = result.everybody or result.phase == "prepare"


def _record_plan(
    session: Session, federation: Federation, round_: Round, instructions: Mapping[int, Stored], now: datetime
) -> None:
    _offer(session, federation, round_, "train", instructions, now)
    round_.planned = True
    round_.deadline_at = now + timedelta(seconds=federation.definition[DEADLINES[round_.kind]])


def _record_evaluation(
    session: Session, federation: Federation, round_: Round, instructions: Mapping[int, Stored], now: datetime
) -> None:
    _offer(session, federation, round_, "evaluate", instructions, now)
    round_.evaluation_planned = True
    round_.state = lifecycle.move(round_.state, lifecycle.EVALUATING)
    round_.evaluation_deadline_at = now + timedelta(seconds=federation.definition["evaluation_deadline_seconds"])


def _offer(
    session: Session,
    federation: Federation,
    round_: Round,
    kind: JobKind,
    instructions: Mapping[int, Stored],
    now: datetime,
) -> None:
    """A job for each instruction whose client is still there."""
    part = "instruction" if kind == "train" else "evaluation"
    for artifact in {artifact.digest: artifact for artifact in instructions.values()}.values():
        artifacts.record(session, artifact, round_.id, part)
    requests = []
    for client in clients.by_ordinals(session, federation.id, list(instructions)):
        if client.state == "ready":
            seed = schedule.job_seed(federation.seed, round_.kind, round_.number, client.ordinal, kind)
            requests.append(jobs.JobRequest(client, seed, instructions[client.ordinal].digest))
    jobs.offer(session, federation, kind, round_.id, requests, now)


def _record_verdicts(session: Session, round_: Round, verdicts: Verdicts, now: datetime) -> None:
    for job in jobs.of_round(session, round_.id, "train"):
        if job.id not in verdicts.problems or job.state != "submitted":  # its client left meanwhile
            continue
        problem = verdicts.problems[job.id]
        if problem is None:
            jobs.record_norm(job, verdicts.norms[job.id])
            jobs.accept(session, job, now)
        else:
            jobs.reject(session, job, dict(problem), now)


def _hold_notes(session: Session, round_: Round, claim: Claim) -> None:
    """The notes that the round used are kept as long as its updates: with both it can be aggregated again."""
    inputs = claim.inputs.whole if isinstance(claim.inputs, JoinInput) else claim.inputs
    assert isinstance(inputs, AggregateInput)  # noqa: S101 - what an aggregate is made of
    notes = {str(update.ordinal): update.note_digest for update in inputs.updates if update.note_digest is not None}
    for digest in notes.values():
        artifacts.hold(session, digest, round_.id, "note")
    round_.notes = notes


def _record_aggregate(
    session: Session, federation: Federation, round_: Round, result: AggregateResult, now: datetime
) -> None:
    artifacts.record(session, result.state.state, round_.id, "state")
    for artifact in result.adapter_files.values():
        artifacts.record(session, artifact, round_.id, "adapter")
    for client in clients.by_ordinals(session, federation.id, list(result.notes)):
        artifacts.release(session, client.id, "note")
        artifacts.record(session, result.notes[client.ordinal], client.id, "note")
        client.note_digest = result.notes[client.ordinal].digest
    round_.state_digest = result.state.state.digest
    if result.adapter_kind is not None:
        files = {
            name: {"digest": artifact.digest, "size_bytes": artifact.size_bytes}
            for name, artifact in result.adapter_files.items()
        }
        round_.adapter = {"kind": result.adapter_kind, "files": files}
    round_.environment = dict(result.environment)
    others = [part.environment for part in sharding.shard_results(session, round_)]
    transitions.add_reasons(round_, ["environments_differ"] * any(other != result.environment for other in others))
    sharding.discard(session, round_)
    round_.finished = result.finished
    round_.aggregated_at = now
    _measure(session, round_, result.metrics)
    session.flush()
    round_.signature = provenance_builder.signature(session, federation, round_) if round_.adapter else None
    events.append(session, federation.id, "round.aggregated", **name_of(round_), metrics=round_.metrics)


def _measure(session: Session, round_: Round, metrics: Mapping[str, float]) -> None:
    submissions = [job.submission or {} for _, job in snapshots.accepted_jobs(session, round_)]
    round_.metrics = {
        **metrics,
        "clients": len(submissions),
        "examples": sum(submission["update"]["examples"] for submission in submissions),
        "upload_bytes": sum(submission["upload_bytes"] for submission in submissions),
        "download_bytes": sum(submission["download_bytes"] for submission in submissions),
    }
    since_collecting = (round_.aggregated_at or round_.opened_at) - (round_.collecting_at or round_.opened_at)
    longest = max((submission["seconds"].get("training", 0.0) for submission in submissions), default=0.0)
    collecting = round_.seconds.get("collecting", 0.0)
    more = {"aggregating": since_collecting.total_seconds() - collecting, "longest_training": longest}
    round_.seconds = {**round_.seconds, **more}
