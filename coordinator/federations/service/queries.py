"""Read access to federations and their events."""

from collections import Counter
from datetime import datetime

from sqlalchemy import Select
from sqlalchemy.orm import Session

from coordinator import events
from coordinator.auth.principals import Principal
from coordinator.clients import service as clients
from coordinator.clients.lifecycle import MEMBER
from coordinator.federations import lifecycle, repository
from coordinator.federations.schemas import (
    ClientCounts,
    CurrentRound,
    EventPage,
    FederationResponse,
    event_response,
)
from coordinator.federations.service import snapshots
from coordinator.models import Federation, Round
from coordinator.rounds import service as rounds

EVENTS_AT_ONCE = 200


def visible(session: Session, principal: Principal, federation_id: str) -> Federation:
    """The federation, for its owner, invited organizations and members. Raises NotFound."""
    return clients.visible_federation(session, principal, federation_id)


def statement_for(principal: Principal) -> Select[Federation]:
    """Statement that selects all federations visible to the principal."""
    return repository.visible_to(None if principal.role == "admin" else principal.organization_id or "", MEMBER)


def to_response(session: Session, federation: Federation, now: datetime) -> FederationResponse:
    """The federation's API response."""
    newest = rounds.newest(session, federation.id)
    what, since = _waiting(session, federation, newest, now)
    row = {name: getattr(federation, name) for name in FederationResponse.model_fields if hasattr(federation, name)}
    return FederationResponse.model_validate(
        {
            **row,
            "waiting_for": what,
            "waiting_since": since,
            "round": None if newest is None else CurrentRound.model_validate(newest, from_attributes=True),
            "rounds_done": rounds.count_closed(session, federation.id),
            "adapter_round": rounds.newest_adapter_number(session, federation.id),
            "clients": _counts(session, federation, now),
        }
    )


def events_after(session: Session, principal: Principal, federation: Federation, number: int) -> EventPage:
    """Events after this number that the principal may see."""
    rows = events.read_after(session, federation.id, number, EVENTS_AT_ONCE)
    last = rows[-1].number if rows else number
    if principal.role != "admin":
        rows = events.visible_to(session, principal.organization_id, federation.id, rows)
    return EventPage(items=[event_response(event) for event in rows], next_after=last)


def _waiting(
    session: Session, federation: Federation, newest: Round | None, now: datetime
) -> tuple[str | None, datetime | None]:
    if federation.state not in lifecycle.ACTIVE:
        return None, None
    step = snapshots.next_step(session, federation, now)
    if not isinstance(step, lifecycle.Wait):
        return _DOING[type(step)], federation.waiting_since
    if step.what is None and newest is not None:
        told = rounds.to_response(session, federation, newest, now)
        return told.waiting_for, told.waiting_since
    return step.what, federation.waiting_since


_DOING: dict[type[lifecycle.Step], str] = {
    lifecycle.Judge: "judging_descriptions",
    lifecycle.Describe: "asking_for_descriptions",
    lifecycle.OpenRound: "opening_round",
    lifecycle.Complete: "completing",
    lifecycle.Fail: "failing",
}


def _counts(session: Session, federation: Federation, now: datetime) -> ClientCounts:
    states = Counter(client.state for client in repository.clients(session, federation.id))
    return ClientCounts(**states, alive=len(clients.alive_ordinals(session, federation.id, now)))
