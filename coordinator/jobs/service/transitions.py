"""Changes of one job's row. Whatever changes a job goes through here."""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy.orm import Session

from coordinator import events
from coordinator.jobs import lifecycle, repository
from coordinator.models import Client, Job
from coordinator.queue.wakeups import ADVANCE_FEDERATION, ADVANCE_ROUND, nudge

_MICROSECONDS = 1_000_000


def move(job: Job, event: lifecycle.Event) -> None:
    """Takes the move. Raises Conflict."""
    job.state = lifecycle.move(job.state, event)
    job.version += 1


def offer_again(session: Session, job: Job, event: Literal["retry", "hand_back", "lose"], now: datetime) -> None:
    """Back to offered; a retry counts as an attempt."""
    move(job, event)
    job.attempt += event == "retry"
    job.boot_id = job.lease_expires_at = job.progress = None
    job.offered_number = next_number(session, now)
    repository.notify_offers(session, [job.worker_id])


def end(session: Session, job: Job, event: lifecycle.Event, problem: dict[str, Any] | None, now: datetime) -> None:
    """The job's last move; what was withdrawn is told by the round or the client that went."""
    move(job, event)
    job.problem, job.ended_at, job.lease_expires_at = problem, now, None
    if job.state != "withdrawn":
        record_event(session, job, code=(problem or {}).get("code"))


def record_event(session: Session, job: Job, **data: Any) -> None:
    """Writes the event `job.<state>`."""
    client = session.get_one(Client, job.client_id)
    fields: dict[str, Any] = {"job_id": job.id, "kind": job.kind, "round_id": job.round_id}
    fields |= {"client_id": client.id, "ordinal": client.ordinal, "attempt": job.attempt}
    events.append(session, job.federation_id, f"job.{job.state}", **fields, **data)


def wake(session: Session, job: Job) -> None:
    """Wakes whoever waits for the job: its round, or for a describe job its federation."""
    if job.round_id is None:
        nudge(session, ADVANCE_FEDERATION, job.federation_id)
    else:
        nudge(session, ADVANCE_ROUND, job.round_id)


def next_number(session: Session, now: datetime) -> int:
    """A number for an offer: larger than all there are, and larger than those of jobs since deleted.

    On PostgreSQL two transactions may draw the same one, or commit in another order; `wakeup` allows for it.
    """
    return max(repository.newest_offer(session) + 1, int(now.timestamp() * _MICROSECONDS))
