"""Repair of lost or damaged artifacts: their restoration from inputs, and the consequences of a final loss.

The holds of an artifact say which rows use it, and as what. States, instructions and adapters are computed again from
stored inputs, and updates are requested again. A round that needs an artifact that is lost for good fails.
"""

from datetime import datetime

from sqlalchemy.orm import Session

from coordinator import events
from coordinator.artifacts import service as artifacts
from coordinator.errors import ArtifactDamaged, cause_of
from coordinator.jobs import service as jobs
from coordinator.models import Client, Federation, Job, Round
from coordinator.queue.wakeups import ADVANCE_FEDERATION, ADVANCE_ROUND, AGGREGATE_SHARD, MEND, nudge
from coordinator.rounds import lifecycle, repository
from coordinator.rounds.facts import name_of
from coordinator.rounds.schemas import PlanInput, RestoreInput, StartInput
from coordinator.rounds.service import inputs, transitions

ARTIFACT_DAMAGED = "artifact_damaged"
Restoration = StartInput | PlanInput | RestoreInput


def hold_up(session: Session, round_id: str, error: Exception) -> None:
    """Records why the round cannot go on for now. Its claim expires, and the step is retried."""
    rows = transitions.lock(session, round_id)
    if rows is None or rows[1].state in lifecycle.TERMINAL:
        return
    _, round_ = rows
    repository.forget_losses(session, round_)  # the owner of the claim is alive
    cause = cause_of(error)
    if round_.reason != cause.code:
        round_.reason = cause.code
        facts = {"reason": cause.code, "detail": cause.detail}
        events.append(session, round_.federation_id, "round.held_up", **name_of(round_), **facts)
    if isinstance(cause, ArtifactDamaged):
        nudge(session, MEND, cause.digest)


def restoration_of(session: Session, digest: str) -> Restoration | None:
    """The inputs from which the artifact can be computed again, or None."""
    for part, holder in artifacts.holders(session, digest):
        round_ = session.get(Round, holder)
        if round_ is not None and (restoration := _restoration(session, round_, part)) is not None:
            return restoration
    return None


def _restoration(session: Session, round_: Round, part: str) -> Restoration | None:
    federation = session.get_one(Federation, round_.federation_id)
    match part:
        case "start":
            return inputs.start_input(federation, round_)
        case "state" | "adapter" if round_.notes is not None:
            whole = inputs.aggregate_input(session, federation, round_, round_.notes)
            return RestoreInput(whole, round_.state_digest if part == "adapter" else None)
        case "instruction":
            return inputs.plan_input(session, federation, round_, round_.cohort or [])
        case "evaluation":
            evaluators = [
                session.get_one(Client, job.client_id) for job in jobs.of_round(session, round_.id, "evaluate")
            ]
            return inputs.evaluation_input(
                session, federation, round_, sorted(evaluators, key=lambda row: row.ordinal)
            )
    return None


def resume(session: Session, digest: str) -> None:
    """Resumes the rounds that waited for the restored bytes."""
    for federation_id in _federations(session, digest):
        for round_ in repository.with_reason(session, federation_id, ARTIFACT_DAMAGED):
            if round_.state not in lifecycle.TERMINAL:
                _resume_round(session, round_)
            elif round_.state == lifecycle.CLOSED and digest in (round_.reason_detail or ""):
                round_.reason = round_.reason_detail = None
        nudge(session, ADVANCE_FEDERATION, federation_id)


def give_up(session: Session, digest: str, now: datetime) -> None:
    """Handles bytes that cannot be restored: requests an update again, or ends the rounds that need them."""
    artifacts.forget_uploads(session, digest)
    for part, holder in artifacts.holders(session, digest):
        job, rows = session.get(Job, holder), transitions.lock(session, holder)
        if job is not None:
            _request_update_again(session, job, digest, now)
        elif rows is not None and part == transitions.SHARD_PART:
            _reopen_shard(session, rows[1], digest)
        elif rows is not None and part == "instruction" and _is_open(rows[1]):
            _open_attempt_again(session, *rows, _detail(part, digest), now)
        elif rows is not None:
            rows[1].reason, rows[1].reason_detail = ARTIFACT_DAMAGED, _detail(part, digest)
    session.flush()
    for federation_id in _federations(session, digest):
        for round_ in repository.with_reason(session, federation_id, ARTIFACT_DAMAGED):
            if _is_open(round_):
                detail = _detail("payload it needs", digest)
                transitions.end(session, round_, lifecycle.FAILED, ARTIFACT_DAMAGED, detail, now)
            elif round_.state == lifecycle.AGGREGATING:  # it has its result, but cannot be evaluated
                transitions.close(session, session.get_one(Federation, federation_id), round_, now)
        nudge(session, ADVANCE_FEDERATION, federation_id)


def _request_update_again(session: Session, job: Job, digest: str, now: datetime) -> None:
    """Offers the job, or a new attempt at its round. The update has the same bits, since the seed is the same."""
    own_rows = None if job.round_id is None else transitions.lock(session, job.round_id)
    newest = (
        None
        if own_rows is None
        else repository.newest_attempt(session, own_rows[1].federation_id, own_rows[1].kind, own_rows[1].number)
    )
    rows = None if newest is None else transitions.lock(session, newest.id)
    if rows is None or not _is_open(rows[1]):
        return
    session.refresh(job, with_for_update=True)
    if job.state == "submitted" and rows[1].id == job.round_id:
        jobs.offer_again(session, job, ArtifactDamaged(digest).problem(), now)
        _resume_round(session, rows[1])
    elif job.state == "accepted" and job.problem is None:
        ordinal = session.get_one(Client, job.client_id).ordinal
        jobs.lose(session, job, ArtifactDamaged(digest).problem(), now)
        _open_attempt_again(session, *rows, _detail(f"update of client {ordinal}", digest), now)


def _is_open(round_: Round) -> bool:
    return round_.state not in lifecycle.TERMINAL and round_.aggregated_at is None


def _open_attempt_again(session: Session, federation: Federation, round_: Round, detail: str, now: datetime) -> None:
    transitions.end(session, round_, lifecycle.WITHDRAWN, ARTIFACT_DAMAGED, detail, now)
    _resume_round(session, transitions.open_again(session, federation, round_, now))


def _resume_round(session: Session, round_: Round) -> None:
    round_.reason = None
    transitions.release_claim(round_)
    nudge(session, ADVANCE_ROUND, round_.id)


def _reopen_shard(session: Session, round_: Round, digest: str) -> None:
    artifacts.discard(digest)
    for row in repository.shards_of(session, round_.id):
        if row.made is not None and digest in str(row.made):
            row.made = row.claimed_until = None
            nudge(session, AGGREGATE_SHARD, row.id)
    _resume_round(session, round_)


def _federations(session: Session, digest: str) -> list[str]:
    ids = set()
    for _, holder in artifacts.holders(session, digest):
        if session.get(Federation, holder) is not None:
            ids.add(holder)
        row = session.get(Round, holder) or session.get(Job, holder) or session.get(Client, holder)
        if row is not None:
            ids.add(row.federation_id)
    return sorted(ids)


def _detail(what: str, digest: str) -> str:
    return f"The stored bytes of the {what} ({digest}) were lost or damaged."
