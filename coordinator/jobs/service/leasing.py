"""Leases: handing jobs out, renewing, failing and declining them, and taking lost leases back."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from coordinator.clients.lifecycle import TAKES_PART
from coordinator.db.batching import map_errors
from coordinator.db.sessions import lock_row
from coordinator.errors import Conflict, CoordinatorError
from coordinator.jobs import lifecycle, repository
from coordinator.jobs.schemas import failure_document, lease_response, problem_document, work_of
from coordinator.jobs.service import removal, transitions
from coordinator.jobs.service.job_batch import JobBatch
from coordinator.models import Client, Federation, Job, Worker
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

_UNREADABLE = "This version cannot read the federation's definition, which an earlier one wrote: create it anew."
_REPETITION_NOTE = " The same error came twice at the same place, so the job is not tried again."
Renewal = tuple[str, str, RenewRequest]
"""Id of the worker, id of the job, and the request."""


def workers_with_something(connection: Connection, worker_ids: Collection[str]) -> set[str]:
    """The workers for which a lease might succeed."""
    return repository.workers_with_something(connection, worker_ids)


def lease(session: Session, requests: Sequence[tuple[str, str]], now: datetime) -> list[Lease | Conflict | None]:
    """Leases each worker, given with its boot id, its oldest offer. None for a worker without one.

    Conflict (`worker_doubled`) for a boot that another one has replaced. Jobs leased to an earlier boot, and leases
    that never reached this one, are offered again first. A worker has at most `slots` leases. The workers' rows are
    locked, so that two calls for the same worker do not both take the last slot. The leased jobs are locked after
    them, in the order in which all transactions lock jobs.
    """
    rows = workers.lock(session, {worker_id for worker_id, _ in requests})
    leases, offers = repository.leased_by(session, rows), repository.offers_to(session, rows)
    jobs = JobBatch(session, [job.id for job in leases], offers)
    worker_jobs = [*leases, *(row[0] for row in offers)]
    of_worker: dict[str, list[Job]] = {worker_id: [] for worker_id in rows}
    for job in worker_jobs:
        of_worker[job.worker_id].append(job)
    return [
        _lease(jobs, rows[worker_id], of_worker[worker_id], boot_id, now) if worker_id in rows else None
        for worker_id, boot_id in requests
    ]


def _lease(
    jobs: JobBatch, worker: Worker, worker_jobs: Sequence[Job], boot_id: str, now: datetime
) -> Lease | Conflict | None:
    if (refusal := workers.refusal_of(worker, boot_id)) is not None:
        return refusal
    session, capabilities = jobs.session, workers.capabilities_of(worker)
    if worker.revoked_at is not None or not _has_free_slot(session, worker_jobs, boot_id, capabilities.slots, now):
        return None
    for job in sorted(worker_jobs, key=lambda job: (job.offered_number, job.id)):
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


def _has_free_slot(session: Session, worker_jobs: Sequence[Job], boot_id: str, slots: int, now: datetime) -> bool:
    leases = [job for job in worker_jobs if job.state == "leased"]
    for job in leases:
        if job.boot_id != boot_id:
            lose(session, job, now, worker_alive=True, detail="The worker was restarted.")
    leases = [job for job in leases if job.state == "leased"]
    if len(leases) < slots:
        return True
    # A worker without a free slot asks for a job only if the response with one of its leases was lost.
    unheard_leases = [job for job in leases if lifecycle.is_unheard(_times(job), now, slots)]
    for job in unheard_leases:
        if lifecycle.was_renewed(_times(job)):
            lose(session, job, now, worker_alive=True, detail="The worker forgot its lease.")
        else:
            # No attempt was made. A response that is lost ten times costs the round only time.
            transitions.offer_again(session, job, "hand_back", now)
    return len(leases) - len(unheard_leases) < slots


def _times(job: Job) -> lifecycle.LeaseTimes:
    return lifecycle.LeaseTimes(job.leased_at, job.lease_expires_at, job.lease_seconds)


def _matches(capabilities: Capabilities, federation: Federation) -> bool:
    revision: int = federation.definition["algorithm_revision"]
    return capabilities.algorithms.get(federation.definition["algorithm"]) == revision


def _dismiss(session: Session, client: Client, federation: Federation, now: datetime) -> None:
    definition = federation.definition
    detail = f"The worker lacks revision {definition['algorithm_revision']} of {definition['algorithm']}: update it."
    removal.remove_client(session, client, "algorithm_revision", detail, now)


def _hand_out(jobs: JobBatch, job: Job, work: Work, boot_id: str, now: datetime) -> Lease:
    transitions.move(job, "lease")
    job.boot_id, job.leased_at = boot_id, now
    job.lease_expires_at = now + timedelta(seconds=job.lease_seconds)
    client, owner = jobs.client(job), jobs.owner(job)
    return lease_response(job, client, jobs.federation(job), jobs.round(job), jobs.instruction(job), owner.name, work)


def hand_back(session: Session, job_id: str, boot_id: str, now: datetime) -> None:
    """Offers a job again whose lease did not reach the worker."""
    job = lock_row(session, Job, job_id)
    if job is not None and job.state == "leased" and job.boot_id == boot_id:
        transitions.offer_again(session, job, "hand_back", now)


def renew(session: Session, renewals: Sequence[Renewal], now: datetime) -> list[RenewResponse | CoordinatorError]:
    """Keeps each lease for another `lease_seconds`. NotFound or Conflict (`lease_lost`) for one that is not kept."""
    jobs = repository.lock_by_id(session, {job_id for _, job_id, _ in renewals})
    return map_errors(renewals, lambda one: _renew(jobs.get(one[1]), *one, now))


def _renew(row: Job | None, worker_id: str, job_id: str, request: RenewRequest, now: datetime) -> RenewResponse:
    job, progress = _check_leased(transitions.owned_job(row, worker_id, job_id), request.boot_id), request.progress
    transitions.move(job, "renew")
    job.lease_expires_at = now + timedelta(seconds=job.lease_seconds)
    if progress is not None:
        metrics = {name: value for name, value in progress.metrics.items() if is_metric(value)}
        job.progress = {"done": progress.done, "total": progress.total, "metrics": metrics}
    return RenewResponse(expires_at=job.lease_expires_at)


def fail(session: Session, worker_id: str, job_id: str, request: FailRequest, now: datetime) -> JobResponse:
    """Offers a failed job again if that may help, else ends it. Raises NotFound, Conflict."""
    job = _lock_leased(session, worker_id, job_id, request.boot_id)
    if request.code == AGENT_STOPPING:
        transitions.offer_again(session, job, "hand_back", now)
        return transitions.to_response(session, job)
    problem = failure_document(request, "The job failed on its worker")
    if request.code == DISK_FULL:  # no attempt was made: the worker pauses until it has room
        transitions.offer_again(session, job, "hand_back", now)
        job.problem = problem
        return transitions.to_response(session, job)
    if request.code == ARTIFACT_DAMAGED and job.instruction_digest is not None:
        nudge(session, MEND, job.instruction_digest)
    is_repetition = lifecycle.is_repeated(job.problem, problem)
    transient = request.transient and not is_repetition
    event = lifecycle.after_failure(transient, job.attempt, _max_attempts(session, job), True)
    if event == "retry":
        transitions.offer_again(session, job, "retry", now)
        job.problem = problem
    else:
        _fail_for_good(
            session,
            job,
            problem | {"detail": problem["detail"] + _REPETITION_NOTE * is_repetition},
            not transient,
            now,
        )
    return transitions.to_response(session, job)


def _fail_for_good(session: Session, job: Job, problem: dict[str, Any], final: bool, now: datetime) -> None:
    """Ends a failed job. `final`: it would fail the same way again, so its round offers it to other clients."""
    transitions.end(session, job, "fail", problem | {"final": final}, now)
    if job.kind == "describe":
        client = session.get_one(Client, job.client_id)
        removal.remove_client(session, client, problem["code"], problem["detail"], now)
    transitions.wake(session, job)


def decline(session: Session, worker_id: str, job_id: str, request: DeclineRequest, now: datetime) -> JobResponse:
    """Ends a job that its node's owner does not allow, and removes the client. Raises NotFound, Conflict."""
    job = _lock_leased(session, worker_id, job_id, request.boot_id)
    problem = problem_document(request.code, "The job was declined by its worker's owner", request.sentence)
    transitions.end(session, job, "decline", problem, now)
    removal.remove_client(session, session.get_one(Client, job.client_id), request.code, request.sentence, now)
    transitions.wake(session, job)
    return transitions.to_response(session, job)


def expire_leases(session: Session, now: datetime) -> list[str]:
    """Takes lost leases back and wakes their rounds and federations, whose ids it returns."""
    jobs = repository.overdue(session, now)
    alive = workers.alive(session, {job.worker_id for job in jobs}, now)
    for job in jobs:
        lose(session, job, now, worker_alive=job.worker_id in alive, detail="The lease was not renewed in time.")
    return sorted({job.round_id or job.federation_id for job in jobs if job.state == "expired"})


def lose(session: Session, job: Job, now: datetime, *, worker_alive: bool, detail: str) -> None:
    """Offers the job of a lost lease again, or lets it expire."""
    if lifecycle.after_loss(job.attempt, _max_attempts(session, job), worker_alive) == "retry":
        transitions.offer_again(session, job, "retry", now)
    else:
        transitions.end(session, job, "expire", problem_document("lease_lost", "The lease was lost", detail), now)
        transitions.wake(session, job)


def _lock_leased(session: Session, worker_id: str, job_id: str, boot_id: str) -> Job:
    return _check_leased(transitions.owned_job(lock_row(session, Job, job_id), worker_id, job_id), boot_id)


def _check_leased(job: Job, boot_id: str) -> Job:
    if job.state != "leased" or job.boot_id != boot_id:
        raise Conflict("lease_lost", f"Job {job.id} is {job.state}; it is not leased by this boot of the worker.")
    return job


def _max_attempts(session: Session, job: Job) -> int:
    attempts: int = session.get_one(Federation, job.federation_id).definition["max_attempts"]
    return attempts
