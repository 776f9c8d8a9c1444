"""What a worker does with a job before it has a result: lease, renew, fail, decline; and leases that are lost."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from coordinator.clients.lifecycle import TAKES_PART
from coordinator.db.batching import map_errors
from coordinator.db.sessions import lock_row
from coordinator.errors import Conflict, CoordinatorError, NotFound
from coordinator.jobs import lifecycle, repository
from coordinator.jobs.schemas import failure_document, job_answer, lease_answer, problem_document, work_of
from coordinator.jobs.service import removal, transitions
from coordinator.jobs.service.job_batch import Together
from coordinator.models import Client, Federation, Job, Round, Worker
from coordinator.queue.wakeups import MEND, nudge
from coordinator.workers import service as workers
from federated.protocol import (
    AGENT_STOPPING,
    ARTIFACT_DAMAGED,
    DISK_FULL,
    Capabilities,
    DeclineRequest,
    FailRequest,
    JobResponse,
    Lease,
    RenewRequest,
    RenewResponse,
    Work,
    is_metric,
)

_UNREADABLE = "An earlier version wrote the federation's definition, and this one does not read it: create it anew."
_REPEATED = " The same error came twice at the same place, so the job is not tried again."
Renewal = tuple[str, str, RenewRequest]
"""Worker, job, and what the one asks for the other."""


def with_something(connection: Connection, worker_ids: Collection[str]) -> set[str]:
    """Those of the workers for whom a lease might succeed."""
    return repository.with_something(connection, worker_ids)


def lease(session: Session, asked: Sequence[tuple[str, str]], now: datetime) -> list[Lease | Conflict | None]:
    """For each worker and boot id: the worker's longest standing offer, handed out to this life of it, or None.

    Conflict (`worker_doubled`) for a life that another one has replaced. What an earlier life had leased, or what
    this one never heard of, is offered again first. At most `slots` jobs are out at once. The workers' rows are
    locked, so that two calls for the same worker do not both take the last slot, and then what they have leased, in
    the order in which everybody locks jobs.
    """
    rows = workers.lock(session, {worker_id for worker_id, _ in asked})
    leased, offered = repository.leased_by(session, rows), repository.offers_to(session, rows)
    jobs = Together(session, [job.id for job in leased], offered)
    theirs = [*leased, *(row[0] for row in offered)]
    of_worker: dict[str, list[Job]] = {worker_id: [] for worker_id in rows}
    for job in theirs:
        of_worker[job.worker_id].append(job)
    return [
        _lease(jobs, rows[worker_id], of_worker[worker_id], boot_id, now) if worker_id in rows else None
        for worker_id, boot_id in asked
    ]


def _lease(
    jobs: Together, worker: Worker, theirs: Sequence[Job], boot_id: str, now: datetime
) -> Lease | Conflict | None:
    if (refusal := workers.refusal_of(worker, boot_id)) is not None:
        return refusal
    session, capabilities = jobs.session, workers.capabilities_of(worker)
    if worker.revoked_at is not None or not _has_free_slot(session, theirs, boot_id, capabilities.slots, now):
        return None
    for job in sorted(theirs, key=lambda job: (job.offered_number, job.id)):
        client, federation = jobs.client(job), jobs.federation(job)
        if job.state != "offered":
            continue
        if client.state not in TAKES_PART:
            removal.withdraw_of_client(session, client, f"The client is {client.state}.", now)
        elif not _matches(capabilities, federation):
            _dismiss(session, client, federation, now)
        elif (work := work_of(federation, job.kind)) is None:
            removal.remove_client(session, client, "definition_unreadable", _UNREADABLE, now)
        else:
            return _hand_out(jobs, job, work, boot_id, now)
    return None


def _has_free_slot(session: Session, leased: Sequence[Job], boot_id: str, slots: int, now: datetime) -> bool:
    held = [job for job in leased if job.state == "leased"]
    for job in held:
        if job.boot_id != boot_id:
            lose(session, job, now, worker_alive=True, detail="The worker was started anew.")
    held = [job for job in held if job.state == "leased"]
    if len(held) < slots:
        return True
    # Full, and asks for more: the answer that would have told it of one of them was lost on the way.
    unheard = [job for job in held if lifecycle.is_unheard(_times(job), now, slots)]
    for job in unheard:
        if lifecycle.was_renewed(_times(job)):
            lose(session, job, now, worker_alive=True, detail="The worker forgot its lease.")
        else:
            # No attempt was made: an answer that is lost ten times costs the round nothing but time.
            transitions.offer_again(session, job, "hand_back", now)
    return len(held) - len(unheard) < slots


def _times(job: Job) -> lifecycle.LeaseTimes:
    return lifecycle.LeaseTimes(job.leased_at, job.lease_expires_at, job.lease_seconds)


def _matches(capabilities: Capabilities, federation: Federation) -> bool:
    wanted: int = federation.definition["algorithm_revision"]
    return capabilities.algorithms.get(federation.definition["algorithm"]) == wanted


def _dismiss(session: Session, client: Client, federation: Federation, now: datetime) -> None:
    definition = federation.definition
    detail = (
        f"The worker has not revision {definition['algorithm_revision']} of {definition['algorithm']}: update it."
    )
    removal.remove_client(session, client, "algorithm_revision", detail, now)


def _hand_out(jobs: Together, job: Job, work: Work, boot_id: str, now: datetime) -> Lease:
    transitions.move(job, "lease")
    job.boot_id, job.leased_at = boot_id, now
    job.lease_expires_at = now + timedelta(seconds=job.lease_seconds)
    client, owner = jobs.client(job), jobs.owner(job)
    return lease_answer(job, client, jobs.federation(job), jobs.round(job), jobs.instruction(job), owner.name, work)


def hand_back(session: Session, job_id: str, boot_id: str, now: datetime) -> None:
    """Offers a job again whose lease never reached the worker."""
    job = lock_row(session, Job, job_id)
    if job is not None and job.state == "leased" and job.boot_id == boot_id:
        transitions.offer_again(session, job, "hand_back", now)


def renew(session: Session, asked: Sequence[Renewal], now: datetime) -> list[RenewResponse | CoordinatorError]:
    """Keeps each lease for another `lease_seconds`; NotFound or Conflict (`lease_lost`) for one that cannot be."""
    jobs = repository.locked_by_id(session, {job_id for _, job_id, _ in asked})
    return map_errors(asked, lambda one: _renew(jobs.get(one[1]), *one, now))


def _renew(found: Job | None, worker_id: str, job_id: str, request: RenewRequest, now: datetime) -> RenewResponse:
    job, progress = _leased(owned(found, worker_id, job_id), request.boot_id), request.progress
    transitions.move(job, "renew")
    job.lease_expires_at = now + timedelta(seconds=job.lease_seconds)
    if progress is not None:
        metrics = {name: value for name, value in progress.metrics.items() if is_metric(value)}
        job.progress = {"done": progress.done, "total": progress.total, "metrics": metrics}
    return RenewResponse(expires_at=job.lease_expires_at)


def fail(session: Session, worker_id: str, job_id: str, request: FailRequest, now: datetime) -> JobResponse:
    """The worker could not do the job: offered again if that may help, else failed. Raises NotFound, Conflict."""
    job = _locked(session, worker_id, job_id, request.boot_id)
    if request.code == AGENT_STOPPING:
        transitions.offer_again(session, job, "hand_back", now)
        return answer(session, job)
    problem = failure_document(request, "The job failed on its worker")
    if request.code == DISK_FULL:  # no attempt either: the worker rests until it has room
        transitions.offer_again(session, job, "hand_back", now)
        job.problem = problem
        return answer(session, job)
    if request.code == ARTIFACT_DAMAGED and job.instruction_digest is not None:
        nudge(session, MEND, job.instruction_digest)
    repeated = lifecycle.is_repeated(job.problem, problem)
    transient = request.transient and not repeated
    event = lifecycle.after_failure(transient, job.attempt, _max_attempts(session, job), True)
    if event == "retry":
        transitions.offer_again(session, job, "retry", now)
        job.problem = problem
    else:
        _end_failed(session, job, problem | {"detail": problem["detail"] + _REPEATED * repeated}, not transient, now)
    return answer(session, job)


def _end_failed(session: Session, job: Job, problem: dict[str, Any], final: bool, now: datetime) -> None:
    """The job's failure is its end. `final`: it would fail the same way again, and its round asks others."""
    transitions.end(session, job, "fail", problem | {"final": final}, now)
    if job.kind == "describe":
        client = session.get_one(Client, job.client_id)
        removal.remove_client(session, client, problem["code"], problem["detail"], now)
    transitions.wake(session, job)


def decline(session: Session, worker_id: str, job_id: str, request: DeclineRequest, now: datetime) -> JobResponse:
    """The owner of the worker's node does not allow the job: its client is out. Raises NotFound, Conflict."""
    job = _locked(session, worker_id, job_id, request.boot_id)
    problem = problem_document(request.code, "The job was declined by its worker's owner", request.sentence)
    transitions.end(session, job, "decline", problem, now)
    removal.remove_client(session, session.get_one(Client, job.client_id), request.code, request.sentence, now)
    transitions.wake(session, job)
    return answer(session, job)


def expire_leases(session: Session, now: datetime) -> list[str]:
    """Takes lost leases back, and wakes who waits for them. Returns the ids of those rounds and federations."""
    jobs = repository.overdue(session, now)
    alive = workers.alive(session, {job.worker_id for job in jobs}, now)
    for job in jobs:
        lose(session, job, now, worker_alive=job.worker_id in alive, detail="The lease was not renewed in time.")
    return sorted({job.round_id or job.federation_id for job in jobs if job.state == "expired"})


def lose(session: Session, job: Job, now: datetime, *, worker_alive: bool, detail: str) -> None:
    """The lease is lost: offered again, or expired."""
    if lifecycle.after_loss(job.attempt, _max_attempts(session, job), worker_alive) == "retry":
        transitions.offer_again(session, job, "retry", now)
    else:
        transitions.end(session, job, "expire", problem_document("lease_lost", "The lease was lost", detail), now)
        transitions.wake(session, job)


def owned(job: Job | None, worker_id: str, job_id: str) -> Job:
    """The job, if it is this worker's. Raises NotFound."""
    if job is None or job.worker_id != worker_id:
        raise NotFound("job_unknown", f"There is no job {job_id}, or it is not yours to see.")
    return job


def answer(session: Session, job: Job) -> JobResponse:
    """The job as its worker and the owners see it."""
    round_ = session.get(Round, job.round_id) if job.round_id else None
    return job_answer(job, session.get_one(Client, job.client_id), round_)


def _locked(session: Session, worker_id: str, job_id: str, boot_id: str) -> Job:
    return _leased(owned(lock_row(session, Job, job_id), worker_id, job_id), boot_id)


def _leased(job: Job, boot_id: str) -> Job:
    if job.state != "leased" or job.boot_id != boot_id:
        raise Conflict("lease_lost", f"Job {job.id} is {job.state}; it is not leased by this life of the worker.")
    return job


def _max_attempts(session: Session, job: Job) -> int:
    attempts: int = session.get_one(Federation, job.federation_id).definition["max_attempts"]
    return attempts
