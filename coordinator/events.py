"""What happened in a federation, in order."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.database import utcnow
from coordinator.models import Event


def append(session: Session, federation_id: str, type: str, **data: Any) -> None:  # noqa: A002 - the column's name
    """Writes the event in the transaction that made it so. `data` must be JSON."""
    session.add(Event(federation_id=federation_id, at=utcnow(), type=type, data=data))


def read_after(session: Session, federation_id: str, number: int, limit: int) -> list[Event]:
    """At most `limit` events of the federation with a larger number, in order."""
    statement = select(Event).where(Event.federation_id == federation_id, Event.number > number)
    return list(session.scalars(statement.order_by(Event.number).limit(limit)))
