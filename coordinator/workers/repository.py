"""Queries over workers. Only `service` uses them."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from coordinator.models import Worker, WorkerKey
from coordinator.web.pagination import Page, PageRequest

# Built once: heartbeats run it all the time, and building a statement costs more than running it.
_LOCK_STATEMENT = (
    select(Worker)
    .where(Worker.id.in_(bindparam("ids", expanding=True)))
    .order_by(Worker.id)
    .with_for_update(key_share=True)
    .execution_options(populate_existing=True)
)


def by_name(session: Session, organization_id: str, name: str) -> Worker | None:
    """The organization's worker with this name."""
    statement = select(Worker).where(Worker.organization_id == organization_id, Worker.name == name)
    return session.scalars(statement).one_or_none()


def by_public_key(session: Session, public_key: str) -> Worker | None:
    """The worker with this key."""
    return session.scalars(select(Worker).where(Worker.public_key == public_key)).one_or_none()


def retire_keys(session: Session, worker_id: str, now: datetime) -> None:
    """Retires the worker's current keys."""
    statement = update(WorkerKey).where(WorkerKey.worker_id == worker_id, WorkerKey.retired_at.is_(None))
    session.execute(statement.values(retired_at=now))


def workers(session: Session, page: PageRequest, organization_id: str | None) -> Page[Worker]:
    """The organization's workers, or all workers for None."""
    statement = select(Worker)
    if organization_id is not None:
        statement = statement.where(Worker.organization_id == organization_id)
    return page.rows(session, statement, Worker.id)


def lock(session: Session, worker_ids: Collection[str]) -> list[Worker]:
    """The workers with these ids, locked in order of id, which prevents deadlocks."""
    return list(session.scalars(_LOCK_STATEMENT, {"ids": list(worker_ids)}))


def alive(session: Session, worker_ids: Collection[str], since: datetime) -> set[str]:
    """Ids of the workers that are not revoked and sent a heartbeat since then."""
    statement = select(Worker.id).where(
        Worker.id.in_(worker_ids), Worker.revoked_at.is_(None), Worker.last_seen_at >= since
    )
    return set(session.scalars(statement))
