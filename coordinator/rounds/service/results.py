"""Records what a conductor made, unless somebody else was faster."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from coordinator import events
from coordinator.artifacts import service as artifacts
from coordinator.artifacts.service import StoredObject
from coordinator.clients import service as clients
from coordinator.jobs import service as jobs
from coordinator.models import Federation, Round
from coordinator.rounds import lifecycle
from coordinator.rounds.facts import name_of
from coordinator.rounds.lifecycle import Evaluate
from coordinator.rounds.schemas import (
    AggregateInput,
    Cut,
    Failure,
    JoinInput,
    MadeAggregate,
    MadePlan,
    MadeShard,
    MadeState,
    Omission,
    Result,
    Verdicts,
)
from coordinator.rounds.service import evaluation, provenance_builder, sharding, snapshots, transitions
from coordinator.rounds.service.claims import Claimed
from coordinator.rounds.service.sharding import ClaimedShard
from federated import schedule
from federated.protocol import JobKind

ALGORITHM_FAILED = "algorithm_failed"
DEATHS = Failure(
    lifecycle.STEP_DIED, "The process that computed this step died twice; the coordinator's log says how."
)
DEADLINES = {"train": "round_deadline_seconds", "prepare": "prepare_deadline_seconds"}


def record(session: Session, claimed: Claimed, result: Result, now: datetime) -> bool:
    """Writes the result of a claimed step. False, and nothing is written, if the round has moved on since."""
    found = _still_claimed(session, claimed)
    if found is None:
        return False
    federation, round_ = found
    transitions.release_claim(round_)
    round_.reason = None  # what held it up is over
    match result:
        case MadeState():
            _record_start(session, round_, result)
        case MadePlan() if isinstance(claimed.step, Evaluate):
            _record_evaluation(session, federation, round_, result.instructions, now)
        case MadePlan():
            _record_plan(session, federation, round_, result.instructions, now)
        case Verdicts():
            _record_verdicts(session, round_, result, now)
        case Omission():
            transitions.leave_out(session, round_, result.problems)
        case Cut():
            sharding.open_all(session, round_, result)
        case MadeAggregate():
            _keep_notes(session, round_, claimed)
            _record_aggregate(session, federation, round_, result, now)
    session.flush()
    return True


def record_shard(
    session: Session, claimed: ClaimedShard, result: MadeShard | Omission | Failure, now: datetime
) -> bool:
    """Writes what a claimed shard made, or why it could not: the round fails. False as for `record`."""
    found = sharding.locked(session, claimed.shard_id)
    if found is None or found[2].version != claimed.version:
        return False
    _, round_, row = found
    if isinstance(result, Failure):
        transitions.end(session, round_, lifecycle.FAILED, result.reason, result.detail, now)
    elif isinstance(result, Omission):
        transitions.leave_out(session, round_, result.problems)
    else:
        sharding.record(session, round_, row, result)
    session.flush()
    return True


def fail(session: Session, claimed: Claimed, failure: Failure, now: datetime) -> bool:
    """The step cannot be done: the round fails; an evaluation is left out. False as for `record`."""
    found = _still_claimed(session, claimed)
    if found is None:
        return False
    federation, round_ = found
    transitions.release_claim(round_)
    if isinstance(claimed.step, Evaluate):
        round_.reason_detail = evaluation.NOT_EVALUATED + failure.detail
        _record_evaluation(session, federation, round_, {}, now)
    else:
        transitions.end(session, round_, lifecycle.FAILED, failure.reason, failure.detail, now)
    return True


def count_death(session: Session, claimed: Claimed | ClaimedShard, now: datetime) -> None:
    """The process that computed a claimed step died: the step is free again, or the round fails."""
    if isinstance(claimed, ClaimedShard):
        found = sharding.locked(session, claimed.shard_id)
        if found is None or found[2].version != claimed.version:
            return
        _, _, row = found
        row.deaths += 1
        row.claimed_until = None
        if row.deaths >= lifecycle.MAX_DEATHS:
            record_shard(session, claimed, DEATHS, now)
    elif (still := _still_claimed(session, claimed)) is not None:
        _, round_ = still
        round_.deaths += 1
        round_.claimed_until = None
        if round_.deaths >= lifecycle.MAX_DEATHS:
            fail(session, claimed, DEATHS, now)


def _still_claimed(session: Session, claimed: Claimed) -> tuple[Federation, Round] | None:
    found = transitions.locked(session, claimed.round_id)
    if found is None or found[1].version != claimed.version or found[1].state in lifecycle.ENDED:
        return None
    return found


def _record_start(session: Session, round_: Round, made: MadeState) -> None:
    artifacts.record(session, made.state, round_.id, "start")
    round_.start_digest = made.state.digest
    round_.kind = made.phase
    round_.everybody = made.everybody or made.phase == "prepare"


def _record_plan(
    session: Session, federation: Federation, round_: Round, instructions: Mapping[int, StoredObject], now: datetime
) -> None:
    _offer(session, federation, round_, "train", instructions, now)
    round_.planned = True
    round_.deadline_at = now + timedelta(seconds=federation.definition[DEADLINES[round_.kind]])


def _record_evaluation(
    session: Session, federation: Federation, round_: Round, instructions: Mapping[int, StoredObject], now: datetime
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
    instructions: Mapping[int, StoredObject],
    now: datetime,
) -> None:
    """A job for each instruction whose client is still there."""
    part = "instruction" if kind == "train" else "evaluation"
    for stored in {stored.digest: stored for stored in instructions.values()}.values():
        artifacts.record(session, stored, round_.id, part)
    asked = []
    for client in clients.by_ordinals(session, federation.id, list(instructions)):
        if client.state == "ready":
            seed = schedule.job_seed(federation.seed, round_.kind, round_.number, client.ordinal, kind)
            asked.append(jobs.Asked(client, seed, instructions[client.ordinal].digest))
    jobs.offer(session, federation, kind, round_.id, asked, now)


def _record_verdicts(session: Session, round_: Round, verdicts: Verdicts, now: datetime) -> None:
    for job in jobs.of_round(session, round_.id, "train"):
        if job.id not in verdicts.problems or job.state != "submitted":  # its client left meanwhile
            continue
        problem = verdicts.problems[job.id]
        if problem is None:
            jobs.keep_norm(job, verdicts.norms[job.id])
            jobs.accept(session, job, now)
        else:
            jobs.reject(session, job, dict(problem), now)


def _keep_notes(session: Session, round_: Round, claimed: Claimed) -> None:
    """The notes that the round used are kept as long as its updates: with both it can be aggregated again."""
    given = claimed.given.whole if isinstance(claimed.given, JoinInput) else claimed.given
    assert isinstance(given, AggregateInput)  # noqa: S101 - what an aggregate is made of
    notes = {str(update.ordinal): update.note_digest for update in given.updates if update.note_digest is not None}
    for digest in notes.values():
        artifacts.hold(session, digest, round_.id, "note")
    round_.notes = notes


def _record_aggregate(
    session: Session, federation: Federation, round_: Round, made: MadeAggregate, now: datetime
) -> None:
    artifacts.record(session, made.state.state, round_.id, "state")
    for stored in made.adapter_files.values():
        artifacts.record(session, stored, round_.id, "adapter")
    for client in clients.by_ordinals(session, federation.id, list(made.notes)):
        artifacts.release(session, client.id, "note")
        artifacts.record(session, made.notes[client.ordinal], client.id, "note")
        client.note_digest = made.notes[client.ordinal].digest
    round_.state_digest = made.state.state.digest
    if made.adapter_kind is not None:
        files = {
            name: {"digest": stored.digest, "size_bytes": stored.size_bytes}
            for name, stored in made.adapter_files.items()
        }
        round_.adapter = {"kind": made.adapter_kind, "files": files}
    round_.environment = dict(made.environment)
    others = [part.environment for part in sharding.made_parts(session, round_)]
    transitions.add_reasons(round_, ["environments_differ"] * any(other != made.environment for other in others))
    sharding.discard(session, round_)
    round_.finished = made.finished
    round_.aggregated_at = now
    _measure(session, round_, made.metrics)
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
