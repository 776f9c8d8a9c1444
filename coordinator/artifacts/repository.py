"""Queries over artifacts, grants, holds and uploads. Only `service` uses them."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, exists, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from coordinator.models import Artifact, Base, Counter, Grant, Hold, Upload
from coordinator.models.counter import ARTIFACT_BYTES_FREED


def _insert(session: Session, model: type[Base]) -> postgresql.Insert | sqlite.Insert:
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(model)
    return sqlite.insert(model)


def insert_missing(session: Session, model: type[Base], **values: Any) -> None:
    """Inserts the row unless its primary key exists. Safe for concurrent writers."""
    session.execute(_insert(session, model).values(**values).on_conflict_do_nothing())


def grant(session: Session, readers: Collection[tuple[str, str]], until: datetime | None) -> None:
    """Inserts or prolongs grants (pairs of digest and principal), sorted to avoid deadlocks. None: no end."""
    if not readers:
        return
    rows = [{"digest": digest, "principal": principal, "until": until} for digest, principal in sorted(readers)]
    new = _insert(session, Grant).values(rows)
    longer = Grant.until.is_not(None) & or_(new.excluded.until.is_(None), Grant.until < new.excluded.until)
    key = [Grant.digest, Grant.principal]
    session.execute(new.on_conflict_do_update(index_elements=key, set_={"until": new.excluded.until}, where=longer))


def may_read(session: Session, digest: str, principal: str, now: datetime) -> bool:
    """True if the principal has a grant that has not expired."""
    lasts = or_(Grant.until.is_(None), Grant.until > now)
    statement = select(exists().where(Grant.digest == digest, Grant.principal == principal, lasts))
    return bool(session.scalar(statement))


def release(session: Session, holder: str, part: str | None) -> None:
    """Deletes the holder's holds, or only those of one part."""
    statement = delete(Hold).where(Hold.holder == holder)
    session.execute(statement if part is None else statement.where(Hold.part == part))


def unheld(created_before: datetime, among: Sequence[str] | None = None) -> ColumnElement[bool]:
    """Condition: an artifact without holds that was created before that time."""
    free = ~exists().where(Hold.digest == Artifact.digest)
    condition = free & (Artifact.created_at < created_before)
    return condition if among is None else condition & Artifact.digest.in_(among)


def delete_unheld(session: Session, created_before: datetime, limit: int) -> Sequence[Artifact]:
    """Deletes up to `limit` rows of artifacts without holds, and returns them.

    Rows are locked first and checked again in the DELETE, which sees holds committed in between. Rows with an
    uncommitted hold are locked by its transaction and skipped.
    """
    free = select(Artifact).where(unheld(created_before)).limit(limit).with_for_update(of=Artifact, skip_locked=True)
    candidates = session.scalars(free).all()
    digests = [artifact.digest for artifact in candidates]
    statement = delete(Artifact).where(unheld(created_before, digests)).returning(Artifact)
    return session.scalars(statement).all()


def count_freed(session: Session, size_bytes: int) -> None:
    """Adds to the counter of bytes deleted since the installation began."""
    session.execute(
        update(Counter).where(Counter.name == ARTIFACT_BYTES_FREED).values(value=Counter.value + size_bytes)
    )


def existing_digests(session: Session, digests: Sequence[str]) -> set[str]:
    """The digests that have a row."""
    return set(session.scalars(select(Artifact.digest).where(Artifact.digest.in_(digests))))


def uploads_of(session: Session, principal: str, digest: str, states: Sequence[str]) -> Sequence[Upload]:
    """The principal's uploads of the digest in one of the states, newest first."""
    statement = select(Upload).where(Upload.principal == principal, Upload.digest == digest, Upload.state.in_(states))
    return session.scalars(statement.order_by(Upload.created_at.desc())).all()


def problems_of_open(
    session: Session, principals: Collection[str], since: datetime
) -> Sequence[dict[str, Any] | None]:
    """Problems of the principals' unfinished uploads that were announced since then."""
    statement = select(Upload.problem).where(Upload.principal.in_(principals), Upload.created_at >= since)
    return session.scalars(statement.where(Upload.state.in_(("open", "assembling")))).all()


def fail_uploads(session: Session, digest: str, problem: dict[str, Any]) -> None:
    """Marks all completed uploads of the digest as failed, for every principal."""
    complete = update(Upload).where(Upload.digest == digest, Upload.state == "complete")
    session.execute(complete.values(state="failed", problem=problem, version=Upload.version + 1))


def holders(session: Session, digest: str) -> Sequence[tuple[str, str]]:
    """(part, holder) of every hold of the digest."""
    rows = session.execute(
        select(Hold.part, Hold.holder).where(Hold.digest == digest).order_by(Hold.holder, Hold.part)
    )
    return [(row.part, row.holder) for row in rows]


def expired_uploads(session: Session, created_before: datetime, limit: int) -> Sequence[Upload]:
    """Uploads announced before that time."""
    return session.scalars(select(Upload).where(Upload.created_at < created_before).limit(limit)).all()


def stuck_uploads(session: Session, now: datetime) -> Sequence[str]:
    """Ids of uploads that wait for assembly and that no process has claimed."""
    free = or_(Upload.claimed_until.is_(None), Upload.claimed_until < now)
    return session.scalars(select(Upload.id).where(Upload.state == "assembling", free)).all()
