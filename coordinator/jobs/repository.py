"""Queries of jobs. Rows that are about to change are locked where the database has row locks."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Select, exists, func, select, update
from sqlalchemy.orm import Session

from coordinator.models import Client, Job, Round

Row = TypeVar("Row", Client, Round)


def of_round(session: Session, round_id: str, kind: str | None) -> list[Job]:
    """A round's jobs in the order in which they were offered first."""
    statement = select(Job).where(Job.round_id == round_id)
    if kind is not None:
        statement = statement.where(Job.kind == kind)
    return list(session.scalars(statement.order_by(Job.offered_at, Job.id)))


def same_job(
    session: Session, client_id: str, kind: str, round_id: str | None, states: Collection[str]
) -> Job | None:
    """The job that was offered for the same already: any of this round, or a describe job in one of `states`."""
    statement = select(Job).where(Job.client_id == client_id, Job.kind == kind)
    if round_id is not None:
        return session.scalars(statement.where(Job.round_id == round_id)).first()
    return session.scalars(statement.where(Job.state.in_(states))).first()


def was_rejected(session: Session, client_id: str, round_: Round) -> bool:
    """Whether an update of this client was rejected in any attempt at the round."""
    statement = select(Job.id).join(Round, Job.round_id == Round.id)
    same_round = (
        Round.federation_id == round_.federation_id,
        Round.kind == round_.kind,
        Round.number == round_.number,
    )
    found = statement.where(Job.client_id == client_id, Job.kind == "train", Job.state == "rejected", *same_round)
    return session.scalars(found.limit(1)).one_or_none() is not None


def open_jobs(
    session: Session,
    states: Collection[str],
    round_id: str | None,
    client_id: str | None,
    federation_id: str | None,
    kind: str | None,
) -> list[Job]:
    """Jobs in one of `states` that fit all that is given, locked."""
    wanted = {Job.round_id: round_id, Job.client_id: client_id, Job.federation_id: federation_id, Job.kind: kind}
    statement = select(Job).where(Job.state.in_(states))
    for column, value in wanted.items():
        if value is not None:
            statement = statement.where(column == value)
    return _locked(session, statement.order_by(Job.id))


def of_gone_clients(session: Session, states: Collection[str], gone: Collection[str]) -> list[Job]:
    """Jobs in one of `states` whose client's state is one of `gone`, locked."""
    is_gone = exists().where(Client.id == Job.client_id, Client.state.in_(gone))
    return _locked(session, select(Job).where(Job.state.in_(states), is_gone).order_by(Job.id))


def overdue(session: Session, now: datetime) -> list[Job]:
    """Leased jobs whose lease is over, locked."""
    return _locked(session, select(Job).where(Job.state == "leased", Job.lease_expires_at < now).order_by(Job.id))


def leased_by(session: Session, worker_id: str) -> list[Job]:
    """What the worker has leased, locked."""
    return _locked(session, select(Job).where(Job.worker_id == worker_id, Job.state == "leased").order_by(Job.id))


def next_offer(session: Session, worker_id: str) -> Job | None:
    """The worker's longest standing offer that nobody else is taking just now, locked."""
    statement = select(Job).where(Job.worker_id == worker_id, Job.state == "offered")
    ordered = statement.order_by(Job.offered_number, Job.id).limit(1)
    return session.scalars(ordered.with_for_update(skip_locked=True)).one_or_none()


def has_something_for(session: Session, worker_id: str) -> bool:
    """Whether the worker has an offer, or a lease that may be lost."""
    waiting = exists().where(Job.worker_id == worker_id, Job.state.in_(("offered", "leased")))
    return session.scalar(select(waiting)) is True


def newest_offer(session: Session) -> int:
    """The largest `offered_number`, 0 without any."""
    return session.scalar(select(func.max(Job.offered_number))) or 0


def offers_after(session: Session, number: int) -> Sequence[tuple[int, str, str]]:
    """Number, job id and worker id of all that stands offered with a larger number."""
    statement = select(Job.offered_number, Job.id, Job.worker_id)
    rows = session.execute(statement.where(Job.state == "offered", Job.offered_number > number))
    return [(row.offered_number, row.id, row.worker_id) for row in rows]


def submitted_in_round(session: Session, round_id: str) -> int:
    """The largest `submitted_number` of the round, 0 without any."""
    return session.scalar(select(func.max(Job.submitted_number)).where(Job.round_id == round_id)) or 0


def count_late_update(session: Session, round_id: str) -> None:
    """One more update that came after the round had closed."""
    counted = update(Round).where(Round.id == round_id).values(late_updates=Round.late_updates + 1)
    session.execute(counted)


def rows(session: Session, model: type[Row], ids: Collection[str]) -> Sequence[Row]:
    """Clients or rounds with these ids."""
    return session.scalars(select(model).where(model.id.in_(ids))).all()


def _locked(session: Session, statement: Select[Job]) -> list[Job]:
    return list(session.scalars(statement.with_for_update().execution_options(populate_existing=True)))
