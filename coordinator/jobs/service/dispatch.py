"""Jobs as rounds and federations use them: offering, judging, withdrawing and reading."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from coordinator.artifacts import service as artifacts
from coordinator.auth.principals import Principal
from coordinator.db.sessions import listen
from coordinator.errors import Conflict, NotFound
from coordinator.jobs import lifecycle, repository
from coordinator.jobs.schemas import job_response
from coordinator.jobs.service import transitions
from coordinator.models import Client, Federation, Job, Round
from coordinator.models.base import new_id
from federated.protocol import JobKind, JobResponse


@dataclass(frozen=True, slots=True)
class JobRequest:
    """The job to offer to one client. Only a describe job has no instruction."""

    client: Client
    seed: int
    instruction_digest: str | None = None


def offer(
    session: Session,
    federation: Federation,
    kind: JobKind,
    round_id: str | None,
    requests: Sequence[JobRequest],
    now: datetime,
) -> list[Job]:
    """Offers each client a job, or returns the one that was offered for the same purpose before.

    Raises Conflict if an update of one of the clients was rejected in this round.
    """
    ids = [request.client.id for request in requests]
    earlier = repository.same_jobs(session, ids, kind, round_id, lifecycle.OPEN)
    if kind == "train" and round_id is not None:
        refused_ids = (
            repository.clients_with_rejection(session, ids, session.get_one(Round, round_id)) - earlier.keys()
        )
        for client in (request.client for request in requests if request.client.id in refused_ids):
            raise Conflict("rejected_before", f"An update of client {client.ordinal} was rejected in this round.")
    numbers = itertools.count(transitions.next_number(session, now))
    new = {
        request.client.id: _new(federation, kind, round_id, request, next(numbers), now)
        for request in requests
        if request.client.id not in earlier
    }
    session.add_all(new.values())
    session.flush()
    repository.notify_offers(session, [job.worker_id for job in new.values()])
    readers = {(job.instruction_digest, job.worker_id) for job in new.values() if job.instruction_digest is not None}
    artifacts.grant(session, readers)
    return [earlier.get(client_id) or new[client_id] for client_id in ids]


def _new(
    federation: Federation, kind: JobKind, round_id: str | None, request: JobRequest, number: int, now: datetime
) -> Job:
    client = request.client
    return Job(
        id=new_id("job"),
        federation_id=federation.id,
        round_id=round_id,
        client_id=client.id,
        worker_id=client.worker_id,
        kind=kind,
        state="offered",
        attempt=1,
        seed=request.seed,
        instruction_digest=request.instruction_digest,
        memory_round=client.memory_round,
        memory_digest=client.memory_digest,
        lease_seconds=federation.definition["lease_seconds"],
        offered_number=number,
        offered_at=now,
        version=0,
    )


def withdraw_open(
    session: Session,
    *,
    round_id: str | None = None,
    client_id: str | None = None,
    federation_id: str | None = None,
    kind: str | None = None,
    reason: str,
    now: datetime,
) -> int:
    """Withdraws jobs that are offered, leased, or submitted and not judged. Returns how many. Wakes nobody."""
    if round_id is None and client_id is None and federation_id is None:
        raise ValueError("name the round, the client or the federation whose jobs are withdrawn")
    jobs = repository.open_jobs(session, lifecycle.OPEN, round_id, client_id, federation_id, kind)
    for job in jobs:
        transitions.withdraw(session, job, reason, "It is not needed any more.", now)
    return len(jobs)


def accept(session: Session, job: Job, now: datetime) -> None:
    """Accepts the result. The client's next job starts from the memory that this update left."""
    transitions.end(session, job, "accept", None, now)
    if job.kind != "train" or job.submission is None or job.round_id is None:
        return
    client, round_ = session.get_one(Client, job.client_id), session.get_one(Round, job.round_id)
    memory = job.submission["update"]["memory_digest"]
    client.memory_digest, client.memory_round = memory, None if memory is None else round_.number
    client.rounds_taken += round_.kind == "train"
    client.version += 1


def reject(session: Session, job: Job, problem: dict[str, Any], now: datetime) -> None:
    """Rejects the result, for the reason in the problem document."""
    transitions.end(session, job, "reject", problem, now)


def record_norm(job: Job, norm: float) -> None:
    """Stores the norm of the update, which its round compares with the others'."""
    job.submission = {**(job.submission or {}), "norm": norm}


def leave_out(job: Job, problem: dict[str, Any]) -> None:
    """Leaves an accepted update out of the aggregation, for the reason in the problem document. It stays accepted."""
    job.problem = problem
    job.version += 1


def offer_again(session: Session, job: Job, problem: dict[str, Any], now: datetime) -> None:
    """Offers the job of a lost, submitted update again."""
    _drop_submission(session, job)
    transitions.offer_again(session, job, "lose", now)
    job.problem = problem


def lose(session: Session, job: Job, problem: dict[str, Any], now: datetime) -> None:
    """Ends the job of a lost, accepted update. The client's memory is reset to that before this job."""
    _drop_submission(session, job)
    transitions.end(session, job, "lose", problem, now)
    client, round_ = session.get_one(Client, job.client_id), session.get_one(Round, job.round_id)
    client.memory_digest, client.memory_round = job.memory_digest, job.memory_round
    client.rounds_taken -= round_.kind == "train"
    client.version += 1


def _drop_submission(session: Session, job: Job) -> None:
    artifacts.release(session, job.id, "update")
    job.submission = job.update_digest = job.key_id = job.submitted_at = job.submitted_number = None


def of_round(session: Session, round_id: str, kind: str | None = None) -> list[Job]:
    """A round's jobs, in the order of their first offers."""
    return repository.of_round(session, round_id, kind)


def to_responses(session: Session, jobs: Sequence[Job]) -> list[JobResponse]:
    """These jobs as the API shows them, in their order."""
    clients = repository.rows(session, Client, {job.client_id for job in jobs})
    rounds = repository.rows(session, Round, {str(job.round_id) for job in jobs})
    return [job_response(job, clients[job.client_id], rounds.get(str(job.round_id))) for job in jobs]


def show(session: Session, principal: Principal, job_id: str) -> JobResponse:
    """The job, for its worker, its client's organization and the federation's owner. Raises NotFound."""
    job = session.get(Job, job_id)
    if job is None or not _may_see(session, principal, job):
        raise NotFound("job_unknown", f"There is no job {job_id}, or it is not yours to see.")
    return transitions.to_response(session, job)


def _may_see(session: Session, principal: Principal, job: Job) -> bool:
    if principal.kind == "worker":
        return job.worker_id == principal.id
    client, federation = session.get_one(Client, job.client_id), session.get_one(Federation, job.federation_id)
    mine = principal.organization_id in (client.organization_id, federation.organization_id)
    return principal.role == "admin" or mine


def newest_offer(connection: Connection) -> int:
    """The number of the newest offer."""
    return repository.newest_offer(connection)


def subscribe_to_offers() -> Any | None:
    """A connection with notifications of new offers, which carry worker ids. None on SQLite."""
    return listen(repository.OFFER_CHANNEL)


def offers_after(connection: Connection, number: int) -> Sequence[tuple[int, str, str]]:
    """Number, job and worker of all open offers with a larger number."""
    return repository.offers_after(connection, number)
