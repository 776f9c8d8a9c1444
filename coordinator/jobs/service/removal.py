"""Removal of clients and workers, and withdrawal of their open jobs."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from coordinator.auth.principals import Principal
from coordinator.clients import service as clients
from coordinator.clients.lifecycle import LIVE, TAKES_PART
from coordinator.db.sessions import lock_row
from coordinator.jobs import lifecycle, repository
from coordinator.jobs.service import transitions
from coordinator.models import Client, Federation
from coordinator.queue.wakeups import ADVANCE_FEDERATION, nudge
from coordinator.workers import service as workers

WORKER_REVOKED = "worker_revoked"
_REVOCATION_DETAIL = "The worker was revoked: register a data set of another one."
_GONE_STATES = ("out", "left", "expelled")


def remove_client(session: Session, client: Client, reason: str, detail: str, now: datetime) -> None:
    """Removes the client from its federation and withdraws its open jobs."""
    if client.state in TAKES_PART:
        clients.take_out(session, client, reason, detail)
    withdraw_of_client(session, client, f"The client is out: {reason}.", now)


def withdraw_of_client(session: Session, client: Client, detail: str, now: datetime) -> None:
    """Withdraws all open jobs of a client that has left its federation, and wakes their rounds."""
    for job in repository.open_jobs(session, lifecycle.OPEN, None, client.id, None, None):
        transitions.withdraw(session, job, lifecycle.CLIENT_GONE, detail, now)
        transitions.wake(session, job)
    nudge(session, ADVANCE_FEDERATION, client.federation_id)


def withdraw_gone(session: Session, now: datetime, federation_id: str | None = None) -> int:
    """Withdraws the open jobs of clients that are out, have left or were expelled, in one federation or in all.

    Returns how many.
    """
    jobs = repository.of_gone_clients(session, lifecycle.OPEN, _GONE_STATES, federation_id)
    for job in jobs:
        transitions.withdraw(session, job, lifecycle.CLIENT_GONE, "The client takes no part any more.", now)
        transitions.wake(session, job)
    return len(jobs)


def revoke_worker(
    session: Session, principal: Principal, worker_id: str, now: datetime, if_match: str | None = None
) -> None:
    """Revokes the worker from its next request on, and removes its clients from all live federations.

    Raises NotFound, Forbidden, PreconditionFailed.
    """
    worker = workers.revoke(session, principal, worker_id, now, if_match)
    _remove_all(session, repository.clients_of_revoked(session, LIVE, TAKES_PART, worker.id), now)


def remove_revoked(session: Session, now: datetime) -> None:
    """Removes the clients of workers that an earlier version revoked, and those that were registered meanwhile."""
    _remove_all(session, repository.clients_of_revoked(session, LIVE, TAKES_PART), now)


def _remove_all(session: Session, candidates: Sequence[Client], now: datetime) -> None:
    if not candidates:
        return
    federation_ids = sorted({client.federation_id for client in candidates})
    live = {federation_id for federation_id in federation_ids if _lock_live(session, federation_id)}
    client_ids = [client.id for client in candidates if client.federation_id in live]
    # Federations, rounds, jobs, clients: the order in which all transactions lock, against deadlocks.
    repository.lock_open_jobs(session, lifecycle.OPEN, client_ids)
    for client_id in client_ids:
        client = lock_row(session, Client, client_id)
        if client is not None:
            remove_client(session, client, WORKER_REVOKED, _REVOCATION_DETAIL, now)


def _lock_live(session: Session, federation_id: str) -> bool:
    """Locks the federation. True if it is live, so that clients may still join and leave it."""
    federation = lock_row(session, Federation, federation_id)
    return federation is not None and federation.state in LIVE
