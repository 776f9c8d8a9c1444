"""Reads a federation into a `lifecycle.Snapshot`, and says what comes next."""

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from coordinator.clients import service as clients
from coordinator.federations import lifecycle, repository
from coordinator.federations.lifecycle import NewestRound, Snapshot, Step
from coordinator.models import Federation, Round
from coordinator.rounds import service as rounds
from coordinator.workers import service as workers
from federated import schedule

UNDER_WAY = ("offered", "leased", "submitted")


def next_step(session: Session, federation: Federation, now: datetime) -> Step:
    """What comes next in the federation, of what the tables say now. Raises Conflict if it does not run."""
    return lifecycle.next_step(snapshot(session, federation, now), now)


def snapshot(session: Session, federation: Federation, now: datetime) -> Snapshot:
    """The federation as the tables show it."""
    newest = rounds.newest(session, federation.id)
    taking_part = [
        client
        for client in repository.clients(session, federation.id)
        if client.state in ("registered", "ready") and not client.evaluates_only
    ]
    under_way = repository.describe_jobs(session, federation.id, UNDER_WAY)
    alive = workers.alive(session, {job.worker_id for job, _ in under_way}, now)
    present = [(job, client) for job, client in under_way if client.state == "registered"]
    definition = federation.definition
    return Snapshot(
        state=federation.state,
        facts_known=federation.model_facts is not None,
        clients=len(taking_part),
        described=sum(client.state == "ready" for client in taking_part),
        describing=sum(job.worker_id in alive and not client.evaluates_only for job, client in present),
        submitted_ids=tuple(job.id for job, _ in present if job.state == "submitted"),
        undescribed_ids=tuple(client.id for client in clients.undescribed(session, federation.id)),
        newest=None if newest is None else _newest(newest),
        stop=_stop(session, federation, newest),
        waiting_since=federation.waiting_since or federation.created_at,
        wait_for_clients_seconds=definition["wait_for_clients_seconds"],
        min_clients=definition["min_clients"],
    )


def _newest(newest: Round) -> NewestRound:
    return NewestRound(newest.state, newest.reason, newest.reason_detail, newest.finished)


def _stop(session: Session, federation: Federation, newest: Round | None) -> str | None:
    """Why no further round is to follow; asked of the same function as in the simulation."""
    if newest is None or newest.kind != "train" or newest.state != "closed":
        return None
    stopping = federation.definition["stopping"]
    history: list[dict[str, Any]] = [{}] * rounds.count_closed(session, federation.id)
    if stopping["metric"] is not None:
        history = rounds.history(session, federation.id)
    return schedule.stop_reason(
        history, federation.definition["rounds"], stopping["metric"], stopping["target"], stopping["patience"]
    )
