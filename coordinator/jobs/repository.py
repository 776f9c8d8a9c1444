"""Queries of jobs. Rows that are about to change are locked if the database has row locks."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TypeVar

from sqlalchemy import BindParameter, Connection, Select, bindparam, exists, func, select, update
from sqlalchemy import Row as RowOf
from sqlalchemy.orm import Session

from coordinator.models import Artifact, Client, Federation, Job, Organization, Round, Worker

OFFER_CHANNEL = "fedloom_offered"
"""The channel on which PostgreSQL notifies of new offers."""

Row = TypeVar("Row", Client, Round)
JobDetails = RowOf[Job, Client, Federation, Organization, Round, Artifact]

# The statements of agents' frequent calls are built once: building one costs more than running it.
_IDS: BindParameter[str] = bindparam("ids", expanding=True)
_REFRESH = {"populate_existing": True}
_BY_ID = select(Job).where(Job.id.in_(_IDS)).order_by(Job.id).with_for_update().execution_options(**_REFRESH)
_JOB_DETAILS = (
    select(Job, Client, Federation, Organization, Round, Artifact)
    .join(Client, Job.client_id == Client.id)
    .join(Federation, Job.federation_id == Federation.id)
    .join(Organization, Federation.organization_id == Organization.id)
    .outerjoin(Round, Job.round_id == Round.id)
    .outerjoin(Artifact, Job.instruction_digest == Artifact.digest)
)
_JOB_DETAILS_BY_ID = _JOB_DETAILS.where(Job.id.in_(_IDS))
_LEASED_BY = (
    select(Job)
    .where(Job.worker_id.in_(_IDS), Job.state == "leased")
    .order_by(Job.id)
    .with_for_update()
    .execution_options(**_REFRESH)
)
_OFFERS_TO = (
    _JOB_DETAILS.where(Job.worker_id.in_(_IDS), Job.state == "offered")
    .order_by(Job.id)
    .with_for_update(of=Job, skip_locked=True)
)
_WORKERS_WITH_SOMETHING = (
    select(Job.worker_id).where(Job.worker_id.in_(_IDS), Job.state.in_(("offered", "leased"))).distinct()
)
_NEWEST_OFFER = select(func.max(Job.offered_number))
_NOTIFY = select(func.pg_notify(OFFER_CHANNEL, bindparam("worker_ids")))
_NOTIFIED_AT_ONCE = 200
_OFFERS_AFTER = select(Job.offered_number, Job.id, Job.worker_id).where(
    Job.state == "offered", Job.offered_number > bindparam("number")
)
_SUBMITTED_IN_ROUND = select(func.max(Job.submitted_number)).where(Job.round_id == bindparam("round_id"))
_ROUNDS_OF = (
    select(Round)
    .where(Round.id.in_(select(Job.round_id).where(Job.id.in_(_IDS))))
    .order_by(Round.id)
    .with_for_update(key_share=True)
    .execution_options(**_REFRESH)
)


def of_round(session: Session, round_id: str, kind: str | None) -> list[Job]:
    """A round's jobs, in the order of their first offers."""
    statement = select(Job).where(Job.round_id == round_id)
    if kind is not None:
        statement = statement.where(Job.kind == kind)
    return list(session.scalars(statement.order_by(Job.offered_at, Job.id)))


def same_jobs(
    session: Session, client_ids: Collection[str], kind: str, round_id: str | None, states: Collection[str]
) -> dict[str, Job]:
    """Client id -> earlier job for the same purpose: any of this round, or a describe job in `states`."""
    statement = select(Job).where(Job.client_id.in_(client_ids), Job.kind == kind)
    same = Job.state.in_(states) if round_id is None else Job.round_id == round_id
    return {job.client_id: job for job in session.scalars(statement.where(same))}


def clients_with_rejection(session: Session, client_ids: Collection[str], round_: Round) -> set[str]:
    """The clients of which an update was rejected in any attempt at the round."""
    statement = select(Job.client_id).join(Round, Job.round_id == Round.id)
    same_round = (
        Round.federation_id == round_.federation_id,
        Round.kind == round_.kind,
        Round.number == round_.number,
    )
    statement = statement.where(
        Job.client_id.in_(client_ids), Job.kind == "train", Job.state == "rejected", *same_round
    )
    return set(session.scalars(statement))


def open_jobs(
    session: Session,
    states: Collection[str],
    round_id: str | None,
    client_id: str | None,
    federation_id: str | None,
    kind: str | None,
) -> list[Job]:
    """Jobs in one of `states` that match all arguments which are not None, locked."""
    conditions = {Job.round_id: round_id, Job.client_id: client_id, Job.federation_id: federation_id, Job.kind: kind}
    statement = select(Job).where(Job.state.in_(states))
    for column, value in conditions.items():
        if value is not None:
            statement = statement.where(column == value)
    return _lock(session, statement.order_by(Job.id))


def of_gone_clients(
    session: Session, states: Collection[str], client_states: Collection[str], federation_id: str | None
) -> list[Job]:
    """Jobs in one of `states` whose client is in one of `client_states`, in one federation or in all, locked."""
    is_gone = exists().where(Client.id == Job.client_id, Client.state.in_(client_states))
    statement = select(Job).where(Job.state.in_(states), is_gone)
    if federation_id is not None:
        statement = statement.where(Job.federation_id == federation_id)
    return _lock(session, statement.order_by(Job.id))


def clients_of_revoked(
    session: Session, federation_states: Collection[str], states: Collection[str], worker_id: str | None = None
) -> Sequence[Client]:
    """Clients in one of `states` of one revoked worker or of all, in federations in one of `federation_states`."""
    statement = (
        select(Client)
        .join(Worker, Client.worker_id == Worker.id)
        .join(Federation, Client.federation_id == Federation.id)
        .where(Worker.revoked_at.is_not(None), Client.state.in_(states), Federation.state.in_(federation_states))
    )
    if worker_id is not None:
        statement = statement.where(Client.worker_id == worker_id)
    return session.scalars(statement.order_by(Client.id)).all()


def lock_open_jobs(session: Session, states: Collection[str], client_ids: Collection[str]) -> None:
    """Locks the jobs of these clients that are in one of `states`, and their rounds before them."""
    statement = select(Job.id).where(Job.client_id.in_(client_ids), Job.state.in_(states))
    ids = session.scalars(statement).all()
    lock_rounds_of(session, ids)
    lock_by_id(session, ids)


def overdue(session: Session, now: datetime) -> list[Job]:
    """Leased jobs whose lease has expired, locked."""
    return _lock(session, select(Job).where(Job.state == "leased", Job.lease_expires_at < now).order_by(Job.id))


def lock_by_id(session: Session, job_ids: Collection[str]) -> dict[str, Job]:
    """The jobs with these ids, locked."""
    return {job.id: job for job in session.scalars(_BY_ID, {"ids": list(job_ids)})}


def leased_by(session: Session, worker_ids: Collection[str]) -> list[Job]:
    """The jobs that these workers have leased, locked."""
    return list(session.scalars(_LEASED_BY, {"ids": list(worker_ids)}))


def offers_to(session: Session, worker_ids: Collection[str]) -> Sequence[JobDetails]:
    """The offers to these workers that no other transaction is changing, locked, as rows of `job_details`."""
    return session.execute(_OFFERS_TO, {"ids": list(worker_ids)}).all()


def workers_with_something(connection: Connection, worker_ids: Collection[str]) -> set[str]:
    """The workers that have an offer, or a lease that may be lost."""
    return set(connection.scalars(_WORKERS_WITH_SOMETHING, {"ids": list(worker_ids)}))


def newest_offer(session: Session | Connection) -> int:
    """The largest `offered_number`, 0 without any."""
    return session.scalar(_NEWEST_OFFER) or 0


def notify_offers(session: Session, worker_ids: Sequence[str]) -> None:
    """Notifies listeners, when the transaction commits, of the workers that got an offer (PostgreSQL only)."""
    if session.get_bind().dialect.name != "postgresql":
        return
    for first in range(0, len(worker_ids), _NOTIFIED_AT_ONCE):  # a notification is limited to 8,000 bytes
        session.execute(_NOTIFY, {"worker_ids": " ".join(worker_ids[first : first + _NOTIFIED_AT_ONCE])})


def offers_after(connection: Connection, number: int) -> Sequence[tuple[int, str, str]]:
    """Number, job id and worker id of all open offers with a larger number."""
    rows = connection.execute(_OFFERS_AFTER, {"number": number})
    return [(row.offered_number, row.id, row.worker_id) for row in rows]


def submitted_in_round(session: Session, round_id: str) -> int:
    """The largest `submitted_number` of the round, 0 without any."""
    return session.scalar(_SUBMITTED_IN_ROUND, {"round_id": round_id}) or 0


def count_late_update(session: Session, round_id: str) -> None:
    """Counts an update that came after the round had closed."""
    statement = update(Round).where(Round.id == round_id).values(late_updates=Round.late_updates + 1)
    session.execute(statement)


def rows(session: Session, model: type[Row], ids: Collection[str]) -> dict[str, Row]:
    """The rows with these ids, by id."""
    return {row.id: row for row in session.scalars(select(model).where(model.id.in_(ids)))}


def job_details(session: Session, job_ids: Collection[str]) -> Sequence[JobDetails]:
    """The jobs with these ids, each with client, federation, owner, round and instruction."""
    return session.execute(_JOB_DETAILS_BY_ID, {"ids": list(job_ids)}).all()


def lock_rounds_of(session: Session, job_ids: Collection[str]) -> None:
    """Locks the rounds of these jobs."""
    session.scalars(_ROUNDS_OF, {"ids": list(job_ids)}).all()


def _lock(session: Session, statement: Select[Job]) -> list[Job]:
    return list(session.scalars(statement.with_for_update().execution_options(**_REFRESH)))
