"""What a worker does with a job before it has a result: lease, renew, fail, decline; and leases that are lost."""

import math
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from coordinator.clients import service as clients
from coordinator.clients.lifecycle import TAKES_PART
from coordinator.database import lock_row
from coordinator.errors import Conflict, NotFound
from coordinator.jobs import lifecycle, repository
from coordinator.jobs.schemas import job_answer, lease_answer, problem_document
from coordinator.jobs.service import moves
from coordinator.models import Artifact, Client, Federation, Job, Organization, Round, Worker
from coordinator.nudge import ADVANCE_FEDERATION, MEND, nudge
from coordinator.workers import service as workers
from federated.protocol import (
    AGENT_STOPPING,
    ARTIFACT_DAMAGED,
    DISK_FULL,
    Capabilities,
    DeclineRequest,
    FailRequest,
    JobAnswer,
    JobProgress,
    Lease,
    RenewAnswer,
)


def has_something_for(session: Session, worker_id: str) -> bool:
    """Whether a lease might succeed; asked before a writing transaction is begun."""
    return repository.has_something_for(session, worker_id)


def lease(session: Session, worker_id: str, boot_id: str, now: datetime) -> Lease | None:
    """Hands the worker's longest standing offer out to this life of it, or None.

    What an earlier life had leased, or what this one never heard of, is offered again first. At most `slots` jobs
    are out at once. The worker's row is locked, so that two calls of the same worker do not both take the last slot.
    """
    worker = lock_row(session, Worker, worker_id)
    if worker is None or worker.revoked_at is not None:
        return None
    capabilities = workers.capabilities_of(worker)
    if not _has_free_slot(session, worker_id, boot_id, capabilities.slots, now):
        return None
    while (job := repository.next_offer(session, worker_id)) is not None:
        client = session.get_one(Client, job.client_id)
        federation = session.get_one(Federation, job.federation_id)
        if client.state not in TAKES_PART:
            withdraw_of_client(session, client, f"The client is {client.state}.", now)
        elif _matches(capabilities, federation):
            return _hand_out(session, job, client, federation, boot_id, now)
        else:
            _dismiss(session, client, federation, now)
    return None


def _has_free_slot(session: Session, worker_id: str, boot_id: str, slots: int, now: datetime) -> bool:
    leased = repository.leased_by(session, worker_id)
    for job in leased:
        if job.boot_id != boot_id:
            lose(session, job, now, worker_alive=True, detail="The worker was started anew.")
    held = [job for job in leased if job.state == "leased"]
    if len(held) < slots:
        return True
    # Full, and asks for more: the answer that would have told it of one of them was lost on the way.
    unheard = [job for job in held if lifecycle.is_unheard(_times(job), now, slots)]
    for job in unheard:
        if lifecycle.was_renewed(_times(job)):
            lose(session, job, now, worker_alive=True, detail="The worker forgot its lease.")
        else:
            # No attempt was made: an answer that is lost ten times costs the round nothing but time.
            moves.offer_again(session, job, "hand_back", now)
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
    remove_client(session, client, "algorithm_revision", detail, now)


def _hand_out(
    session: Session, job: Job, client: Client, federation: Federation, boot_id: str, now: datetime
) -> Lease:
    moves.move(job, "lease")
    job.boot_id, job.leased_at = boot_id, now
    job.lease_expires_at = now + timedelta(seconds=job.lease_seconds)
    round_ = session.get(Round, job.round_id) if job.round_id else None
    instruction = session.get(Artifact, job.instruction_digest) if job.instruction_digest else None
    owner = session.get_one(Organization, federation.organization_id)
    return lease_answer(job, client, federation, round_, instruction, owner.name)


def hand_back(session: Session, job_id: str, boot_id: str, now: datetime) -> None:
    """Offers a job again whose lease never reached the worker."""
    job = lock_row(session, Job, job_id)
    if job is not None and job.state == "leased" and job.boot_id == boot_id:
        moves.offer_again(session, job, "hand_back", now)


def renew(
    session: Session, worker_id: str, job_id: str, boot_id: str, progress: JobProgress | None, now: datetime
) -> RenewAnswer:
    """Keeps the lease for another `lease_seconds`. Raises NotFound, Conflict (`lease_lost`)."""
    job = _leased(session, worker_id, job_id, boot_id)
    moves.move(job, "renew")
    job.lease_expires_at = now + timedelta(seconds=job.lease_seconds)
    if progress is not None:
        finite = {name: value for name, value in progress.metrics.items() if math.isfinite(value)}
        job.progress = {"done": progress.done, "total": progress.total, "metrics": finite}
    return RenewAnswer(expires_at=job.lease_expires_at)


def fail(session: Session, worker_id: str, job_id: str, request: FailRequest, now: datetime) -> JobAnswer:
    """The worker could not do the job: offered again if that may help, else failed. Raises NotFound, Conflict."""
    job = _leased(session, worker_id, job_id, request.boot_id)
    if request.code == AGENT_STOPPING:
        moves.offer_again(session, job, "hand_back", now)
        return answer(session, job)
    problem = problem_document(request.code, "The job failed on its worker", request.detail)
    if request.code == DISK_FULL:  # no attempt either: the worker rests until it has room
        moves.offer_again(session, job, "hand_back", now)
        job.problem = problem
        return answer(session, job)
    if request.code == ARTIFACT_DAMAGED and job.instruction_digest is not None:
        nudge(session, MEND, job.instruction_digest)
    event = lifecycle.after_failure(request.transient, job.attempt, _max_attempts(session, job), True)
    if event == "retry":
        moves.offer_again(session, job, "retry", now)
        job.problem = problem
    else:
        moves.end(session, job, "fail", problem, now)
        if job.kind == "describe":
            remove_client(session, session.get_one(Client, job.client_id), request.code, request.detail, now)
        moves.wake(session, job)
    return answer(session, job)


def decline(session: Session, worker_id: str, job_id: str, request: DeclineRequest, now: datetime) -> JobAnswer:
    """The owner of the worker's node does not allow the job: its client is out. Raises NotFound, Conflict."""
    job = _leased(session, worker_id, job_id, request.boot_id)
    problem = problem_document(request.code, "The job was declined by its worker's owner", request.detail)
    moves.end(session, job, "decline", problem, now)
    remove_client(session, session.get_one(Client, job.client_id), request.code, request.detail, now)
    moves.wake(session, job)
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
        moves.offer_again(session, job, "retry", now)
    else:
        moves.end(session, job, "expire", problem_document("lease_lost", "The lease was lost", detail), now)
        moves.wake(session, job)


def withdraw(session: Session, job: Job, reason: str, detail: str, now: datetime) -> None:
    """Takes an open job back."""
    moves.end(session, job, "withdraw", problem_document(reason, "The job was withdrawn", detail), now)


def remove_client(session: Session, client: Client, reason: str, detail: str, now: datetime) -> None:
    """Takes the client out of its federation, and its open jobs back."""
    if client.state in TAKES_PART:
        clients.take_out(session, client, reason, detail)
    withdraw_of_client(session, client, f"The client is out: {reason}.", now)


def withdraw_of_client(session: Session, client: Client, detail: str, now: datetime) -> None:
    """Takes back all open jobs of a client that takes no part any more, and wakes who waits for them."""
    for job in repository.open_jobs(session, lifecycle.OPEN, None, client.id, None, None):
        withdraw(session, job, "client_gone", detail, now)
        moves.wake(session, job)
    nudge(session, ADVANCE_FEDERATION, client.federation_id)


def own_job(session: Session, worker_id: str, job_id: str, *, locked: bool) -> Job:
    """The worker's job. Raises NotFound."""
    job = lock_row(session, Job, job_id) if locked else session.get(Job, job_id)
    if job is None or job.worker_id != worker_id:
        raise NotFound("job_unknown", f"There is no job {job_id}, or it is not yours to see.")
    return job


def answer(session: Session, job: Job) -> JobAnswer:
    """The job as its worker and the owners see it."""
    round_ = session.get(Round, job.round_id) if job.round_id else None
    return job_answer(job, session.get_one(Client, job.client_id), round_)


def _leased(session: Session, worker_id: str, job_id: str, boot_id: str) -> Job:
    job = own_job(session, worker_id, job_id, locked=True)
    if job.state != "leased" or job.boot_id != boot_id:
        raise Conflict("lease_lost", f"Job {job_id} is {job.state}; it is not leased by this life of the worker.")
    return job


def _max_attempts(session: Session, job: Job) -> int:
    attempts: int = session.get_one(Federation, job.federation_id).definition["max_attempts"]
    return attempts
