"""Transitions of a round that need no tensors: opening, drawing, leaving out, ending and closing."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from coordinator import events
from coordinator.artifacts import service as artifacts
from coordinator.clients import service as clients
from coordinator.db.sessions import lock_row
from coordinator.jobs import service as jobs
from coordinator.models import Client, Federation, Round, Shard
from coordinator.models.base import new_id
from coordinator.queue.wakeups import ADVANCE_FEDERATION, nudge
from coordinator.rounds import lifecycle, repository, statistics
from coordinator.rounds.facts import Snapshot, name_of
from coordinator.rounds.lifecycle import Aggregate, Close, Draw, Fail, LeaveOut, LocalStep, Retry
from coordinator.rounds.service import evaluation, retention, snapshots
from coordinator.workers import service as workers
from federated import schedule

SHARD_PART = "shard"


def lock(session: Session, round_id: str) -> tuple[Federation, Round] | None:
    """The round with its federation, locked against other writers."""
    round_ = lock_row(session, Round, round_id)
    return None if round_ is None else (session.get_one(Federation, round_.federation_id), round_)


def open_round(
    session: Session,
    federation: Federation,
    *,
    kind: str,
    number: int,
    start_digest: str | None,
    everybody: bool,
    now: datetime,
) -> Round:
    """A new attempt at a round, in state waiting. Updates that earlier attempts accepted still count."""
    before = repository.newest_attempt(session, federation.id, kind, number)
    newest = repository.newest(session, federation.id)
    round_ = Round(
        id=new_id("rnd"),
        federation_id=federation.id,
        kind=kind,
        number=number,
        attempt=1 if before is None else before.attempt + 1,
        sequence=1 if newest is None else newest.sequence + 1,
        state=lifecycle.WAITING,
        everybody=everybody,
        start_digest=start_digest,
        metrics={},
        seconds={},
        not_reproducible=[],
        opened_at=now,
    )
    session.add(round_)
    session.flush()
    if before is not None:
        add_reasons(round_, ["retry", *before.not_reproducible])
    events.append(session, federation.id, "round.opened", **name_of(round_))
    return round_


def apply(
    session: Session, federation: Federation, round_: Round, snapshot: Snapshot, step: LocalStep, now: datetime
) -> Round:
    """Applies the step and returns the round to go on with: the next attempt after a Retry."""
    match step:
        case Draw():
            _draw(session, federation, round_, snapshot, step, now)
        case LeaveOut():
            detail = f"The update's norm is more than {statistics.OUTLIER:g} times the median of the others'."
            problem = jobs.problem_document("norm_outlier", "The update was left out", detail)
            leave_out(session, round_, dict.fromkeys(step.ordinals, problem))
        case Close():
            close(session, federation, round_, now)
        case Retry():
            end(session, round_, lifecycle.WITHDRAWN, lifecycle.QUORUM_MISSED, step.detail, now)
            return open_again(session, federation, round_, now)
        case Fail():
            end(session, round_, lifecycle.FAILED, step.reason, step.detail, now)
    return round_


def withdraw(session: Session, round_id: str, reason: str, now: datetime) -> None:
    """Ends a round now, if it is open. A round with a result is closed with it, without its evaluation."""
    rows = lock(session, round_id)
    if rows is None or rows[1].state in lifecycle.TERMINAL:
        return
    federation, round_ = rows
    if round_.aggregated_at is None:
        end(session, round_, lifecycle.WITHDRAWN, reason, None, now)
    else:
        close(session, federation, round_, now)


def close(session: Session, federation: Federation, round_: Round, now: datetime) -> None:
    """Accepts the evaluations, closes the round, and releases old updates and states."""
    if evaluation.accept_results(session, federation, round_, now):
        note_seconds(round_, evaluating=(round_.aggregated_at, now))
    jobs.withdraw_open(session, round_id=round_.id, reason="round_closed", now=now)
    round_.state = lifecycle.move(round_.state, lifecycle.CLOSED)
    round_.closed_at = now
    note_seconds(round_, total=(round_.opened_at, now))
    release_claim(round_)
    session.flush()
    retention.release_old(session, federation)
    events.append(session, round_.federation_id, "round.closed", **name_of(round_), metrics=round_.metrics)
    nudge(session, ADVANCE_FEDERATION, round_.federation_id)


def open_again(session: Session, federation: Federation, round_: Round, now: datetime) -> Round:
    """Another attempt at the same round."""
    return open_round(
        session,
        federation,
        kind=round_.kind,
        number=round_.number,
        start_digest=round_.start_digest,
        everybody=round_.everybody,
        now=now,
    )


def _draw(
    session: Session, federation: Federation, round_: Round, snapshot: Snapshot, step: Draw, now: datetime
) -> None:
    before = repository.attempt(session, federation.id, round_.kind, round_.number, round_.attempt - 1)
    absentees = set(before.cohort or ()) - snapshot.accepted if before else set()
    exclusions = snapshot.accepted | snapshot.ineligible
    cohort = schedule.draw(
        federation.seed,
        round_.kind,
        round_.number,
        round_.attempt,
        snapshot.alive,
        absentees,
        exclusions,
        step.count,
    )
    candidates = repository.training_clients(session, federation.id)
    round_.cohort = list(cohort)
    round_.registered = sum(client.state == "ready" for client in candidates)
    round_.state = lifecycle.move(round_.state, lifecycle.COLLECTING)
    round_.collecting_at = now
    note_seconds(round_, waiting=(round_.opened_at, now))
    absent = [client.ordinal for client in candidates if client.ordinal not in snapshot.alive]
    add_reasons(round_, ["client_not_alive"] * bool(absent))
    add_reasons(round_, ["over_selection"] * (federation.definition["over_selection"] > 0))
    facts = {"cohort": list(cohort), "alive": sorted(snapshot.alive), "absent": absent}
    events.append(session, federation.id, "round.collecting", **name_of(round_), **facts)


def end(session: Session, round_: Round, state: str, reason: str, detail: str | None, now: datetime) -> None:
    """Ends the round without a result, withdraws its open jobs, and wakes its federation."""
    round_.state = lifecycle.move(round_.state, state)
    round_.reason, round_.reason_detail, round_.closed_at = reason, detail, now
    release_claim(round_)
    artifacts.release(session, round_.id, SHARD_PART)
    jobs.withdraw_open(session, round_id=round_.id, reason=reason, now=now)
    events.append(session, round_.federation_id, f"round.{state}", **name_of(round_), reason=reason, detail=detail)
    nudge(session, ADVANCE_FEDERATION, round_.federation_id)


def leave_out(session: Session, round_: Round, problems: Mapping[int, Mapping[str, Any]]) -> None:
    """Leaves these clients' accepted updates out of the round, and discards shards that include them."""
    for ordinal, job in snapshots.accepted_jobs(session, round_):
        if ordinal in problems:
            jobs.leave_out(job, dict(problems[ordinal]))
    artifacts.release(session, round_.id, SHARD_PART)
    repository.delete_shards(session, round_.id)
    session.flush()
    reasons = {ordinal: problem["code"] for ordinal, problem in sorted(problems.items())}
    left_out = [{"ordinal": ordinal, "reason": reason} for ordinal, reason in reasons.items()]
    events.append(session, round_.federation_id, "round.left_out", **name_of(round_), left_out=left_out)
    release_claim(round_)


def release_claim(round_: Round) -> None:
    """Frees the round for the next step. A result that is still being computed will not be recorded."""
    round_.version += 1
    round_.claimed_until = None
    round_.deaths = round_.losses = 0


def fail_if_given_up(session: Session, round_: Round, step: Round | Shard, now: datetime) -> bool:
    """Fails the round, and returns True, if too many claims on its step or shard expired without a result."""
    step.losses += step.claimed_until is not None
    if step.losses < lifecycle.MAX_LOSSES:
        return False
    detail = f"This step was begun {step.losses} times and never ended; each time its background process was gone."
    end(session, round_, lifecycle.FAILED, lifecycle.STEP_DIED, detail, now)
    return True


def stop_collecting(session: Session, round_: Round, step: Aggregate, now: datetime) -> None:
    """Ends collecting: withdraws the open jobs and records why the round may not be reproducible."""
    if round_.state != lifecycle.COLLECTING:
        return
    round_.state = lifecycle.move(round_.state, lifecycle.AGGREGATING)
    note_seconds(round_, collecting=(round_.collecting_at, now))
    acceptances = snapshots.accepted_jobs(session, round_)
    in_time = [*acceptances, *snapshots.left_out(session, round_)]
    missing = sorted(set(round_.cohort or ()) - {ordinal for ordinal, _ in in_time})
    reasons = [reason for _, job in acceptances for reason in (job.submission or {}).get("not_reproducible", ())]
    if missing:
        reasons.append("missed_deadline" if step.missed_deadline else "client_lost")
        round_.reason_detail = "without the clients " + ", ".join(map(str, missing))
    add_reasons(round_, reasons)
    jobs.withdraw_open(session, round_id=round_.id, kind="train", reason="round_closed", now=now)
    events.append(session, round_.federation_id, "round.aggregating", **name_of(round_), missing=missing)


def evaluating_clients(session: Session, federation: Federation, round_: Round, now: datetime) -> list[Client]:
    """The clients alive that evaluate the round's result: its cohort or all, and those that only evaluate."""
    accepted_ordinals = {ordinal for ordinal, _ in snapshots.accepted_jobs(session, round_)}
    everybody = federation.definition["evaluation"]["who"] == "all"
    ready = clients.ready_clients(session, federation.id)
    alive = workers.alive(session, {client.worker_id for client in ready}, now)
    candidates = [client for client in ready if client.evaluation_examples and client.worker_id in alive]
    return [
        client for client in candidates if everybody or client.evaluates_only or client.ordinal in accepted_ordinals
    ]


def add_reasons(round_: Round, reasons: Iterable[str]) -> None:
    """Adds reasons why a repetition of the round may give other bits."""
    round_.not_reproducible = sorted({*round_.not_reproducible, *reasons})


def note_seconds(round_: Round, **phases: tuple[datetime | None, datetime]) -> None:
    """Adds the seconds between two times, by phase."""
    seconds = {name: (until - since).total_seconds() for name, (since, until) in phases.items() if since is not None}
    round_.seconds = {**round_.seconds, **seconds}
