"""Event log of a federation, in order, and the webhook deliveries of its events.

Deliveries are written in the transaction of their event, so one exists if and only if the other does. Events get
their numbers at the end of their transaction, and the transactions of a federation do this one after the other. They
become visible in the order of their numbers: a reader that has read up to a number has missed none below it.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final

from pydantic_core import to_json
from sqlalchemy import BindParameter, bindparam, func, select, union
from sqlalchemy.orm import Session

from coordinator.db.sessions import before_commit, lock_names, utcnow
from coordinator.models import Client, Delivery, Event, Federation, Invitation, Webhook
from coordinator.models.base import new_id
from coordinator.queue.wakeups import DELIVER, nudge
from coordinator.settings import get_settings

TYPES: Final = frozenset(
    f"{subject}.{verb}"
    for subject, verbs in {
        "federation": "created changed described started paused resumed completed failed cancelled",
        "organization": "invited accepted declined left removed",
        "client": "registered ready out restored left expelled",
        "round": "opened collecting held_up left_out aggregating aggregated not_evaluated closed failed withdrawn",
        "job": "submitted accepted rejected failed declined expired",
    }.items()
    for verb in verbs.split()
)
FILTERS: Final = TYPES | {"*"} | {f"{name.partition('.')[0]}.*" for name in TYPES}
"""Filters of a webhook: one type of event, all types of a subject, or all types."""
READERS: Final = ("invited", "accepted")
"""States of an invitation in which an organization may read a federation's events."""
_PRIVATE_FIELDS: Final = ("client_id", "organization_id")
_PENDING: Final = "fedloom_events"
_IDS: BindParameter[str] = bindparam("federation_ids", expanding=True)
_READERS: Final = union(
    select(Federation.id.label("federation_id"), Federation.organization_id).where(Federation.id.in_(_IDS)),
    select(Invitation.federation_id, Invitation.organization_id).where(
        Invitation.federation_id.in_(_IDS), Invitation.state.in_(READERS)
    ),
).subquery()
_WEBHOOKS: Final = (
    select(_READERS.c.federation_id, Webhook)
    .join(Webhook, Webhook.organization_id == _READERS.c.organization_id)
    .order_by(_READERS.c.federation_id, Webhook.id)
)


def append(session: Session, federation_id: str, type: str, **data: Any) -> None:  # noqa: A002 - the column's name
    """Writes the event in the transaction of the change that it reports. `data` must be JSON."""
    if type not in TYPES:
        raise ValueError(f"no such event: {type}")
    event = Event(federation_id=federation_id, at=utcnow(), type=type, data=data)
    pending: list[Event] | None = session.info.get(_PENDING)
    if pending is None:
        pending = session.info[_PENDING] = []
        before_commit(session, partial(_write, session, pending))
    pending.append(event)


def read_after(session: Session, federation_id: str, number: int, limit: int) -> list[Event]:
    """At most `limit` events of the federation after `number`, in order."""
    statement = select(Event).where(Event.federation_id == federation_id, Event.number > number)
    return list(session.scalars(statement.order_by(Event.number).limit(limit)))


def latest_number(session: Session, federation_id: str) -> int:
    """The number of the federation's latest event; 0 without events."""
    return session.scalar(select(func.max(Event.number)).where(Event.federation_id == federation_id)) or 0


def visible_to(
    session: Session, organization_id: str | None, federation_id: str, events: Sequence[Event]
) -> list[Event]:
    """Those of a federation's events that an organization may see.

    Events about one client or one organization are visible to that organization and to the federation's owner only.
    """
    owner = session.scalar(select(Federation.organization_id).where(Federation.id == federation_id))
    if organization_id == owner:
        return list(events)
    clients = select(Client.id).where(
        Client.federation_id == federation_id, Client.organization_id == organization_id
    )
    own = {organization_id, *session.scalars(clients)}
    return [event for event in events if {event.data[name] for name in _PRIVATE_FIELDS if name in event.data} <= own]


def matches_filters(filters: Iterable[str], type: str) -> bool:  # noqa: A002 - the column's name
    """Whether a webhook with these filters receives events of this type."""
    return not {type, type.partition(".")[0] + ".*", "*"}.isdisjoint(filters)


def _write(session: Session, events: Sequence[Event]) -> None:
    session.flush()  # all other rows are locked by now, and deleted readers are gone
    federation_ids = {event.federation_id for event in events}
    lock_names(session, [f"events {federation_id}" for federation_id in federation_ids])
    session.add_all(events)
    session.flush()
    _add_deliveries(session, events, federation_ids)


def _add_deliveries(session: Session, events: Sequence[Event], federation_ids: Collection[str]) -> None:
    # Webhooks of the organizations that may read a federation's events once this transaction is done.
    for federation_id, webhook in session.execute(_WEBHOOKS, {"federation_ids": list(federation_ids)}).all():
        federation_events = [event for event in events if event.federation_id == federation_id]
        for event in visible_to(session, webhook.organization_id, federation_id, federation_events):
            if matches_filters(webhook.events, event.type):
                session.add(_delivery(webhook, event))
                nudge(session, DELIVER, webhook.organization_id, webhook.id)


def _delivery(webhook: Webhook, event: Event) -> Delivery:
    identity = new_id("dlv")
    body = {
        "id": identity,
        "webhook_id": webhook.id,
        "federation_id": event.federation_id,
        "number": event.number,
        "at": event.at,
        "type": event.type,
        "data": event.data,
    }
    return Delivery(
        id=identity,
        webhook_id=webhook.id,
        federation_id=event.federation_id,
        event=event.type,
        body=to_json(body).decode(),
        state="pending",
        attempts=0,
        next_attempt_at=event.at,
        give_up_at=event.at + timedelta(seconds=get_settings().webhook_give_up_seconds),
        created_at=event.at,
    )
