"""Changes of one job's row. Every change of a job's state is made here."""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy.orm import Session

from coordinator import events
from coordinator.errors import NotFound
from coordinator.jobs import lifecycle, repository
from coordinator.jobs.schemas import job_response, problem_document
from coordinator.models import Client, Job, Round
from coordinator.queue.wakeups import ADVANCE_FEDERATION, ADVANCE_ROUND, nudge
from federated.protocol import JobResponse

_MICROSECONDS = 1_000_000


def move(job: Job, event: lifecycle.Event) -> None:
    """Moves the job to the state after `event`. Raises Conflict."""
    job.state = lifecycle.move(job.state, event)
    job.version += 1


def offer_again(session: Session, job: Job, event: Literal["retry", "hand_back", "lose"], now: datetime) -> None:
    """Offers the job again. A retry counts as an attempt."""
    move(job, event)
    job.attempt += event == "retry"
    job.boot_id = job.lease_expires_at = job.progress = None
    job.offered_number = next_number(session, now)
    repository.notify_offers(session, [job.worker_id])


def end(session: Session, job: Job, event: lifecycle.Event, problem: dict[str, Any] | None, now: datetime) -> None:
    """Ends the job. A withdrawal has no event of its own: the round's or the client's says it."""
    move(job, event)
    job.problem, job.ended_at, job.lease_expires_at = problem, now, None
    if job.state != "withdrawn":
        record_event(session, job, code=(problem or {}).get("code"))


def withdraw(session: Session, job: Job, reason: str, detail: str, now: datetime) -> None:
    """Takes an open job back."""
    end(session, job, "withdraw", problem_document(reason, "The job was withdrawn", detail), now)


def owned_job(job: Job | None, worker_id: str, job_id: str) -> Job:
    """The job, if it is this worker's. Raises NotFound."""
    if job is None or job.worker_id != worker_id:
        raise NotFound("job_unknown", f"There is no job {job_id}, or it is not yours to see.")
    return job


def to_response(session: Session, job: Job) -> JobResponse:
    """The job as its worker and the owners see it."""
    round_ = session.get(Round, job.round_id) if job.round_id else None
    return job_response(job, session.get_one(Client, job.client_id), round_)


def record_event(session: Session, job: Job, **data: Any) -> None:
    """Writes the event `job.<state>`."""
    client = session.get_one(Client, job.client_id)
    fields: dict[str, Any] = {"job_id": job.id, "kind": job.kind, "round_id": job.round_id}
    fields |= {"client_id": client.id, "ordinal": client.ordinal, "attempt": job.attempt}
    events.append(session, job.federation_id, f"job.{job.state}", **fields, **data)


def wake(session: Session, job: Job) -> None:
    """Wakes the job's round, or for a describe job its federation."""
    if job.round_id is None:
        nudge(session, ADVANCE_FEDERATION, job.federation_id)
    else:
        nudge(session, ADVANCE_ROUND, job.round_id)


def next_number(session: Session, now: datetime) -> int:
    """A number for an offer, larger than those of all jobs, deleted ones included.

    On PostgreSQL two transactions may draw the same one, or commit in another order. `wakeup` allows for it.
    """
    return max(repository.newest_offer(session) + 1, int(now.timestamp() * _MICROSECONDS))
