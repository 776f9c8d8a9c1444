"""Statements over federations. Used by `service` alone."""

from collections.abc import Collection, Sequence

from sqlalchemy import Select, exists, or_, select
from sqlalchemy.orm import Session

from coordinator.models import Client, Federation, Invitation, Job


def visible_to(organization_id: str | None, member_states: Collection[str]) -> Select[Federation]:
    """Federations that the organisation owns or is part of; all of them for None."""
    if organization_id is None:
        return select(Federation)
    part = exists().where(
        Invitation.federation_id == Federation.id,
        Invitation.organization_id == organization_id,
        Invitation.state.in_(member_states),
    )
    return select(Federation).where(or_(Federation.organization_id == organization_id, part))


def ids_in(session: Session, states: Collection[str]) -> Sequence[str]:
    """Ids of all federations in one of these states, in order."""
    return session.scalars(select(Federation.id).where(Federation.state.in_(states)).order_by(Federation.id)).all()


def clients(session: Session, federation_id: str) -> Sequence[Client]:
    """All clients of the federation, by ordinal."""
    statement = select(Client).where(Client.federation_id == federation_id)
    return session.scalars(statement.order_by(Client.ordinal)).all()


def describe_jobs(session: Session, federation_id: str, states: Collection[str]) -> Sequence[tuple[Job, Client]]:
    """Describe jobs in one of these states with their clients: by time of submission, then by ordinal."""
    statement = (
        select(Job, Client)
        .join(Client, Job.client_id == Client.id)
        .where(Job.federation_id == federation_id, Job.kind == "describe", Job.state.in_(states))
    )
    rows = session.execute(statement.order_by(Job.submitted_at, Client.ordinal))
    return [(job, client) for job, client in rows]


def others_taking_part(session: Session, federation: Federation) -> bool:
    """Whether another organisation accepted, or any client is registered."""
    accepted = exists().where(
        Invitation.federation_id == federation.id,
        Invitation.organization_id != federation.organization_id,
        Invitation.state == "accepted",
    )
    registered = exists().where(
        Client.federation_id == federation.id, Client.state.in_(("registered", "ready", "out"))
    )
    return bool(session.scalar(select(or_(accepted, registered))))
