"""Database statements of the reader of open waits: at most three for any number of waits."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sqlalchemy import BindParameter, Executable, bindparam, func, literal, select, union_all

from coordinator.auth.principals import Principal
from coordinator.db.sessions import autocommit_reads, utcnow
from coordinator.models import ApiKey, Event, Federation, Job, Worker

Kind = Literal["federation", "job"]
Mark = int | str | None
"""A value that changes when a subject has something new to read; None if the subject no longer exists."""

_IDS: BindParameter[list[str]] = bindparam("ids", expanding=True)
_NUMBERS = select(func.coalesce(func.max(Event.number), 0)).where(Event.federation_id == Federation.id)
_MARKS: dict[Kind, Executable] = {
    "federation": select(Federation.id, _NUMBERS.scalar_subquery()).where(Federation.id.in_(_IDS)),
    "job": select(Job.id, Job.state).where(Job.id.in_(_IDS)),
}
_KEYS = ApiKey.id.in_(bindparam("keys", expanding=True))
_WORKERS = Worker.id.in_(bindparam("workers", expanding=True))
_REFUSALS = union_all(
    select(ApiKey.id, literal("key_revoked").label("code")).where(_KEYS, ApiKey.revoked_at.is_not(None)),
    select(ApiKey.id, literal("key_expired").label("code")).where(_KEYS, ApiKey.expires_at <= bindparam("now")),
    select(Worker.id, literal("worker_revoked").label("code")).where(_WORKERS, Worker.revoked_at.is_not(None)),
)


class Subject(NamedTuple):
    """A federation, whose mark is the number of its latest event, or a job, whose mark is its state."""

    kind: Kind
    id: str


@dataclass(frozen=True, slots=True)
class Observation:
    """Marks of the existing subjects, and error codes by the ids of revoked or expired keys and workers."""

    marks: dict[Subject, Mark]
    refusals: dict[str, str]


def observe(subjects: Iterable[Subject], principals: Iterable[Principal]) -> Observation:
    """The present marks of these subjects and refusals of these principals."""
    unique_subjects, unique_principals = set(subjects), set(principals)
    marks: dict[Subject, Mark] = {}
    holders = {kind: [one.id for one in unique_principals if one.kind == kind] for kind in ("key", "worker")}
    with autocommit_reads() as connection:
        for kind, statement in _MARKS.items():
            if ids := [subject.id for subject in unique_subjects if subject.kind == kind]:
                rows = connection.execute(statement, {"ids": ids})
                marks |= {Subject(kind, identity): mark for identity, mark in rows}
        parameters = {"keys": holders["key"], "workers": holders["worker"], "now": utcnow()}
        return Observation(marks, {row.id: row.code for row in connection.execute(_REFUSALS, parameters)})
