"""Recorders of the conductor's results, which write nothing if the round has moved on since the claim."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

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
from coordinator.rounds.service.inputs import StepContext
from coordinator.rounds.service.sharding import ShardClaim
from federated import schedule
from federated.protocol import JobKind

ALGORITHM_FAILED = "algorithm_failed"
STEP_DIED_TWICE = Failure(
    lifecycle.STEP_DIED, "The process that computed this step died twice; the coordinator's log says how."
)
Recorder = Callable[[StepContext, Claim, Any], None]
DEADLINES = {"train": "round_deadline_seconds", "prepare": "prepare_deadline_seconds"}


def record(session: Session, claim: Claim, result: Result, write: Recorder, now: datetime) -> bool:
    """Has `write` record the result of a claimed step. False, and nothing is written, if the round has moved on."""
    context = _context_if_current(session, claim, now)
    if context is None:
        return False
    transitions.release_claim(context.round_)
    context.round_.reason = None  # whatever held the round up is over
    write(context, claim, result)
    session.flush()
    return True


def record_shard(
    session: Session, claim: ShardClaim, result: ShardResult | Omission | Failure, now: datetime
) -> bool:
    """Writes the result of a claimed shard. A failure fails the round. False as for `record`."""
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
    """Fails the round of a step that cannot be computed; an evaluation is skipped instead. False as for `record`."""
    context = _context_if_current(session, claim, now)
    if context is None:
        return False
    round_ = context.round_
    transitions.release_claim(round_)
    if isinstance(claim.step, Evaluate):
        round_.reason_detail = evaluation.NOT_EVALUATED + failure.detail
        record_evaluation(context, claim, PlanResult({}))
    else:
        transitions.end(session, round_, lifecycle.FAILED, failure.reason, failure.detail, now)
    return True


def count_death(session: Session, claim: Claim | ShardClaim, now: datetime) -> None:
    """Counts the death of the process that computed a claimed step: the step is free again, or the round fails."""
    if isinstance(claim, ShardClaim):
        rows = sharding.lock(session, claim.shard_id)
        if rows is None or rows[2].version != claim.version:
            return
        _, _, row = rows
        row.deaths += 1
        row.claimed_until = None
        if row.deaths >= lifecycle.MAX_DEATHS:
            record_shard(session, claim, STEP_DIED_TWICE, now)
    elif (context := _context_if_current(session, claim, now)) is not None:
        round_ = context.round_
        round_.deaths += 1
        round_.claimed_until = None
        if round_.deaths >= lifecycle.MAX_DEATHS:
            fail(session, claim, STEP_DIED_TWICE, now)


def _context_if_current(session: Session, claim: Claim, now: datetime) -> StepContext | None:
    rows = transitions.lock(session, claim.round_id)
    if rows is None or rows[1].version != claim.version or rows[1].state in lifecycle.TERMINAL:
        return None
    return StepContext(session, *rows, now)


def record_start(context: StepContext, _: Claim, result: StateResult) -> None:
    """Keeps the federation's first state, which decides the kind of the first round."""
    round_ = context.round_
    artifacts.record(context.session, result.state, round_.id, "start")
    round_.start_digest = result.state.digest
    round_.kind = result.phase
    round_.everybody = result.everybody or result.phase == "prepare"


def record_plan(context: StepContext, _: Claim, result: PlanResult) -> None:
    """Offers the cohort its jobs and starts the round's deadline."""
    _offer(context, "train", result.instructions)
    round_ = context.round_
    round_.planned = True
    seconds = context.federation.definition[DEADLINES[round_.kind]]
    round_.deadline_at = context.now + timedelta(seconds=seconds)


def record_evaluation(context: StepContext, _: Claim, result: PlanResult) -> None:
    """Offers the jobs of the evaluation and starts its deadline."""
    _offer(context, "evaluate", result.instructions)
    round_ = context.round_
    round_.evaluation_planned = True
    round_.state = lifecycle.move(round_.state, lifecycle.EVALUATING)
    seconds = context.federation.definition["evaluation_deadline_seconds"]
    round_.evaluation_deadline_at = context.now + timedelta(seconds=seconds)


def record_verdicts(context: StepContext, _: Claim, result: Verdicts) -> None:
    """Accepts or rejects the jobs of the checked updates."""
    session, now = context.session, context.now
    for job in jobs.of_round(session, context.round_.id, "train"):
        if job.id not in result.problems or job.state != "submitted":  # its client left meanwhile
            continue
        problem = result.problems[job.id]
        if problem is None:
            jobs.record_norm(job, result.norms[job.id])
            jobs.accept(session, job, now)
        else:
            jobs.reject(session, job, dict(problem), now)


def record_aggregate(context: StepContext, claim: Claim, result: AggregateResult | ShardLayout | Omission) -> None:
    """Keeps the next state and its adapter, opens the shards, or leaves updates out."""
    session, round_ = context.session, context.round_
    match result:
        case Omission():
            transitions.leave_out(session, round_, result.problems)
        case ShardLayout():
            sharding.open_all(session, round_, result)
        case AggregateResult():
            _hold_notes(session, round_, claim)
            _record_state(session, context.federation, round_, result, context.now)


def _offer(context: StepContext, kind: JobKind, instructions: Mapping[int, StoredObject]) -> None:
    """Offers a job for each instruction whose client is still there."""
    session, federation, round_ = context.session, context.federation, context.round_
    part = "instruction" if kind == "train" else "evaluation"
    for artifact in {artifact.digest: artifact for artifact in instructions.values()}.values():
        artifacts.record(session, artifact, round_.id, part)
    requests = []
    for client in clients.by_ordinals(session, federation.id, list(instructions)):
        if client.state == "ready":
            seed = schedule.job_seed(federation.seed, round_.kind, round_.number, client.ordinal, kind)
            requests.append(jobs.JobRequest(client, seed, instructions[client.ordinal].digest))
    jobs.offer(session, federation, kind, round_.id, requests, context.now)


def _hold_notes(session: Session, round_: Round, claim: Claim) -> None:
    """Holds the notes that the round used as long as its updates. With both it can be aggregated again."""
    inputs = claim.inputs.whole if isinstance(claim.inputs, JoinInput) else claim.inputs
    assert isinstance(inputs, AggregateInput)  # noqa: S101 - the input of every aggregation
    notes = {str(update.ordinal): update.note_digest for update in inputs.updates if update.note_digest is not None}
    for digest in notes.values():
        artifacts.hold(session, digest, round_.id, "note")
    round_.notes = notes


def _record_state(
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
