"""Queries of rounds, for `service` only."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BindParameter, Row, Select, and_, bindparam, delete, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from coordinator.models import Client, Job, Round, Shard, WorkerKey

# Built once: aliases, subqueries and JSON paths are reference cycles of up to seven hundred objects, which wait for
# Python's collector. In a web process, where it runs seldom, 170 MB of them piled up and took a second to collect.
_IDS: BindParameter[str] = bindparam("ids", expanding=True)
_ONE = aliased(Round)
_ENDS = (
    select(Round.federation_id, func.max(Round.sequence).label("sequence"))
    .where(Round.federation_id.in_(_IDS))
    .group_by(Round.federation_id)
    .subquery()
)
_NEWEST_OF = select(Round).join(
    _ENDS, and_(Round.federation_id == _ENDS.c.federation_id, Round.sequence == _ENDS.c.sequence)
)
_ATTEMPTS_AT = (
    select(Round)
    .join(_ONE, and_(_ONE.federation_id == Round.federation_id, _ONE.kind == Round.kind, _ONE.number == Round.number))
    .where(_ONE.id.in_(_IDS))
    .order_by(Round.attempt)
)
_PROBLEM_CODE = Job.problem["code"].as_string()
_JOBS_OF = (
    select(
        Job.round_id, Job.kind, Job.id, Client.ordinal, Job.state, Job.submitted_number, Job.submitted_at,
        Job.submission["norm"].as_float(), _PROBLEM_CODE, Job.problem["error"].as_string(),
        Job.problem["place"].as_string(), Job.problem["final"].as_boolean(),
    )
    .join(Client, Job.client_id == Client.id)
    .where(Job.round_id.in_(_IDS))
    .order_by(Job.offered_at, Job.id)
)  # fmt: skip
JobRow = tuple[
    str | None, str, str, int, str, int | None, datetime | None, float | None,
    str | None, str | None, str | None, bool | None,
]  # fmt: skip
_ACCEPTED_ORDINALS = (
    select(Round.kind, Round.number, Round.attempt, Client.ordinal, _PROBLEM_CODE)
    .join(Job, Job.round_id == Round.id)
    .join(Client, Job.client_id == Client.id)
    .where(Round.federation_id == bindparam("federation_id"), Round.number.in_(bindparam("numbers", expanding=True)))
    .where(Job.kind == "train", Job.state == "accepted")
)


def attempts(session: Session, federation_id: str, kind: str, number: int) -> Sequence[Round]:
    """All attempts at one round, the first one first."""
    return session.scalars(_of(federation_id, kind, number).order_by(Round.attempt)).all()


def newest_attempt(session: Session, federation_id: str, kind: str, number: int) -> Round | None:
    """The last attempt at a round."""
    return session.scalars(_of(federation_id, kind, number).order_by(Round.attempt.desc()).limit(1)).one_or_none()


def attempt(session: Session, federation_id: str, kind: str, number: int, attempt: int) -> Round | None:
    """One attempt at a round."""
    return session.scalars(_of(federation_id, kind, number).where(Round.attempt == attempt)).one_or_none()


def newest(session: Session, federation_id: str) -> Round | None:
    """The round that was opened last."""
    return session.scalars(_all(federation_id).order_by(Round.sequence.desc()).limit(1)).one_or_none()


def newest_of(session: Session, federation_ids: Collection[str]) -> dict[str, Round]:
    """Federation id -> the round that was opened last, of those that have one."""
    return {row.federation_id: row for row in session.scalars(_NEWEST_OF, {"ids": list(federation_ids)})}


def attempts_at(session: Session, round_ids: Collection[str]) -> Sequence[Round]:
    """All attempts at the rounds of which these are attempts, the first ones first."""
    return session.scalars(_ATTEMPTS_AT, {"ids": list(round_ids)}).unique().all()


def jobs_of(session: Session, round_ids: Collection[str]) -> Sequence[Row[*JobRow]]:
    """All jobs of these rounds: round, kind, id, ordinal of the client, state, number and time of submission, norm of
    the update, and the code, error, place and finality of the problem.

    The jobs of one round are in the order of their first offers.
    """
    return session.execute(_JOBS_OF, {"ids": list(round_ids)}).all()


def newest_with_adapter(session: Session, federation_id: str) -> Round | None:
    """The aggregated train round with the largest number."""
    statement = _all(federation_id).where(Round.kind == "train", Round.aggregated_at.is_not(None))
    return session.scalars(statement.order_by(Round.sequence.desc()).limit(1)).one_or_none()


def round_with_adapter(session: Session, federation_id: str, number: int) -> Round | None:
    """The attempt at a train round that was aggregated."""
    statement = _of(federation_id, "train", number).where(Round.aggregated_at.is_not(None))
    return session.scalars(statement.order_by(Round.attempt.desc()).limit(1)).one_or_none()


def aggregated_until(session: Session, until: Round) -> Sequence[Round]:
    """All rounds of the federation with a result, in order, up to this one."""
    statement = _all(until.federation_id).where(Round.aggregated_at.is_not(None), Round.sequence <= until.sequence)
    return session.scalars(statement.order_by(Round.sequence)).all()


def updates_until(session: Session, until: Round) -> Sequence[Row[str, int, int, Job]]:
    """Kind and number of the round, ordinal and job of every accepted update of the federation up to this round."""
    statement = (
        select(Round.kind, Round.number, Client.ordinal, Job)
        .join(Round, Job.round_id == Round.id)
        .join(Client, Job.client_id == Client.id)
        .where(Job.federation_id == until.federation_id, Job.kind == "train", Job.state == "accepted")
        .where(Round.sequence <= until.sequence)
    )
    return session.execute(statement.order_by(Round.sequence, Client.ordinal)).all()


def public_keys(session: Session, key_ids: Collection[str]) -> dict[str, str]:
    """Key id -> public key of a present or former worker, sorted."""
    rows = session.scalars(select(WorkerKey).where(WorkerKey.id.in_(key_ids)).order_by(WorkerKey.id))
    return {row.id: row.public_key for row in rows}


def history(session: Session, federation_id: str) -> list[dict[str, Any]]:
    """Metrics of the closed train rounds, in order."""
    conditions = (Round.federation_id == federation_id, Round.kind == "train", Round.state == "closed")
    return list(session.scalars(select(Round.metrics).where(*conditions).order_by(Round.number)))


def accepted_ordinals(
    session: Session, federation_id: str, numbers: Collection[int]
) -> Sequence[tuple[str, int, int, int, str | None]]:
    """Kind, number and attempt of the round, ordinal, and reason of omission, of every accepted update in rounds
    with these numbers.
    """
    within = {"federation_id": federation_id, "numbers": list(numbers)}
    return [tuple(row) for row in session.execute(_ACCEPTED_ORDINALS, within)]


def count_closed(session: Session, federation_id: str) -> int:
    """Number of closed train rounds."""
    conditions = (Round.federation_id == federation_id, Round.kind == "train", Round.state == "closed")
    return session.scalar(select(func.count()).select_from(Round).where(*conditions)) or 0


def with_reason(session: Session, federation_id: str, reason: str) -> Sequence[Round]:
    """The federation's rounds that have this reason, in order, locked."""
    statement = _all(federation_id).where(Round.reason == reason).order_by(Round.sequence)
    return session.scalars(statement.with_for_update().execution_options(populate_existing=True)).all()


def in_states(
    session: Session, states: Collection[str], federation_ids: Collection[str], now: datetime
) -> Sequence[Round]:
    """Rounds in one of these states: those of these federations, and all with a past deadline or claim."""
    times = (Round.deadline_at, Round.evaluation_deadline_at, Round.claimed_until)
    condition = or_(Round.federation_id.in_(federation_ids), *(time <= now for time in times))
    return session.scalars(select(Round).where(Round.state.in_(states), condition)).all()


def closed_before(session: Session, federation_id: str, rounds: int) -> Round | None:
    """The round that was closed `rounds` rounds before the one closed last."""
    statement = _all(federation_id).where(Round.state == "closed").order_by(Round.sequence.desc())
    return session.scalars(statement.offset(rounds).limit(1)).one_or_none()


def training_clients(session: Session, federation_id: str) -> Sequence[Client]:
    """Clients that can be drawn now or after their description, without those that only evaluate."""
    statement = select(Client).where(
        Client.federation_id == federation_id,
        Client.state.in_(("registered", "ready")),
        Client.evaluates_only.is_(False),
    )
    return session.scalars(statement.order_by(Client.ordinal)).all()


def all_clients(session: Session, federation_id: str) -> Sequence[Client]:
    """All clients of a federation, in any state."""
    return session.scalars(select(Client).where(Client.federation_id == federation_id)).all()


def of_federation(federation_id: str) -> Select[Round]:
    """All rounds of a federation."""
    return _all(federation_id)


def _all(federation_id: str) -> Select[Round]:
    return select(Round).where(Round.federation_id == federation_id)


def _of(federation_id: str, kind: str, number: int) -> Select[Round]:
    return _all(federation_id).where(Round.kind == kind, Round.number == number)


def ordinals(session: Session, client_ids: Collection[str]) -> dict[str, int]:
    """Client id -> ordinal."""
    rows = session.execute(select(Client.id, Client.ordinal).where(Client.id.in_(client_ids)))
    return {row.id: row.ordinal for row in rows}


def holders(session: Session, federation_id: str) -> list[str]:
    """Ids of the rounds, clients and jobs of a federation, which are the possible holders of its artifacts."""
    ids: list[str] = []
    for model in (Round, Client, Job):
        ids += session.scalars(select(model.id).where(model.federation_id == federation_id))
    return ids


def shards_of(session: Session, round_id: str) -> Sequence[Shard]:
    """The shards of a round's aggregation, in order."""
    return session.scalars(select(Shard).where(Shard.round_id == round_id).order_by(Shard.number)).all()


def delete_shards(session: Session, round_id: str) -> None:
    """Deletes the shards of the round's aggregation."""
    session.execute(delete(Shard).where(Shard.round_id == round_id))


def open_shards(session: Session, state: str, now: datetime) -> Sequence[str]:
    """Ids of the shards that are not done and that nobody works on, of rounds in this state."""
    free = or_(Shard.claimed_until.is_(None), Shard.claimed_until <= now)
    statement = select(Shard.id).join(Round, Shard.round_id == Round.id).where(Round.state == state, free)
    return session.scalars(statement.where(Shard.made.is_(None)).order_by(Shard.id)).all()


def forget_losses(session: Session, round_: Round) -> None:
    """The claims on the round's step, and on its shards, that passed are counted anew."""
    round_.losses = 0
    session.execute(update(Shard).where(Shard.round_id == round_.id).values(losses=0))
