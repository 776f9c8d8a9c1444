"""Snapshots of federations, read from the database, and their next steps."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from coordinator.federations import lifecycle, repository
from coordinator.federations.lifecycle import NewestRound, Snapshot, Step
from coordinator.federations.repository import DescribeJob, Participant
from coordinator.models import Federation, Round
from coordinator.rounds import service as rounds
from coordinator.workers import service as workers
from federated import schedule

UNDER_WAY = ("offered", "leased", "submitted")

_Row = TypeVar("_Row", Participant, DescribeJob)


def next_step(session: Session, federation: Federation, now: datetime) -> Step:
    """The federation's next step. Raises Conflict unless it is running or paused."""
    return next_steps(session, [federation], now)[federation.id]


def next_steps(session: Session, federations: Sequence[Federation], now: datetime) -> dict[str, Step]:
    """Federation id -> next step. Raises Conflict unless all are running or paused."""
    pairs = zip(federations, snapshots(session, federations, now), strict=True)
    return {row.id: lifecycle.next_step(snapshot, now) for row, snapshot in pairs}


def snapshots(session: Session, federations: Sequence[Federation], now: datetime) -> list[Snapshot]:
    """Snapshots of the federations, in their order.

    The number of statements does not depend on the number of federations, except for one more for each federation
    between two rounds.
    """
    ids = [row.id for row in federations]
    newest = rounds.newest_of(session, ids)
    participants = _by_federation(repository.participants(session, ids))
    under_way = _by_federation(repository.describe_jobs(session, ids, UNDER_WAY))
    alive = workers.alive(session, {job.worker_id for jobs in under_way.values() for job in jobs}, now)
    return [
        _snapshot(session, row, newest.get(row.id), participants[row.id], under_way[row.id], alive)
        for row in federations
    ]


def _by_federation(rows: Sequence[_Row]) -> defaultdict[str, list[_Row]]:
    groups: defaultdict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        groups[row.federation_id].append(row)
    return groups


def _snapshot(
    session: Session,
    federation: Federation,
    newest: Round | None,
    participants: Sequence[Participant],
    under_way: Sequence[DescribeJob],
    alive: Collection[str],
) -> Snapshot:
    """`under_way`: describe jobs; `alive`: workers."""
    training = [client for client in participants if not client.evaluates_only]
    client_ids = {job.client_id for job in under_way}
    present = [job for job in under_way if job.client_state == "registered"]
    definition = federation.definition
    stop, stop_detail = _stop(session, federation, newest)
    return Snapshot(
        state=federation.state,
        facts_known=federation.model_facts is not None,
        clients=len(training),
        ready=sum(client.state == "ready" for client in training),
        describing=sum(job.worker_id in alive and not job.evaluates_only for job in present),
        submitted_ids=tuple(job.id for job in present if job.state == "submitted"),
        undescribed_ids=tuple(
            client.id for client in participants if client.state == "registered" and client.id not in client_ids
        ),
        newest=None if newest is None else _newest(newest),
        stop=stop,
        waiting_since=federation.waiting_since or federation.created_at,
        wait_for_clients_seconds=definition["wait_for_clients_seconds"],
        min_clients=definition["min_clients"],
        stop_detail=stop_detail,
    )


def _newest(newest: Round) -> NewestRound:
    return NewestRound(newest.state, newest.reason, newest.reason_detail, newest.finished)


def _stop(session: Session, federation: Federation, newest: Round | None) -> tuple[str | None, str | None]:
    """The reason that no further round follows, and an explanation for the owner; (None, None) if one follows.

    Uses the same function as the simulation.
    """
    if newest is None or newest.kind != "train" or newest.state != "closed":
        return None, None
    stopping = federation.definition["stopping"]
    metric = stopping["metric"]
    history: list[dict[str, Any]] = [{}] * rounds.count_closed(session, federation.id)
    if metric is not None:
        history = rounds.history(session, federation.id)
    planned_rounds = federation.definition["rounds"]
    stop = schedule.stop_reason(history, planned_rounds, metric, stopping["target"], stopping["patience"])
    if stop != "rounds" or metric is None or any(metric in row for row in history):
        return stop, None
    return stop, f"No round measured {metric!r}, which the stopping rule needs; see the rounds for the reasons."
