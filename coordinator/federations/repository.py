"""Queries over federations. Only `service` uses them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Select, exists, or_, select
from sqlalchemy.orm import Session

from coordinator.models import Client, Federation, Invitation, Job


@dataclass(frozen=True, slots=True)
class Participant:
    """A client that is registered or ready, and so trains or evaluates in its federation."""

    federation_id: str
    id: str
    state: str
    evaluates_only: bool


@dataclass(frozen=True, slots=True)
class DescribeJob:
    """A describe job with the state of its client."""

    federation_id: str
    id: str
    state: str
    worker_id: str
    client_id: str
    client_state: str
    evaluates_only: bool


def visible_to(organization_id: str | None, member_states: Collection[str]) -> Select[Federation]:
    """Federations that the organization owns or is a member of; all federations for None."""
    if organization_id is None:
        return select(Federation)
    part = exists().where(
        Invitation.federation_id == Federation.id,
        Invitation.organization_id == organization_id,
        Invitation.state.in_(member_states),
    )
    return select(Federation).where(or_(Federation.organization_id == organization_id, part))


def by_id(session: Session, ids: Collection[str]) -> Sequence[Federation]:
    """The federations with these ids that still exist, sorted by id."""
    return session.scalars(select(Federation).where(Federation.id.in_(ids)).order_by(Federation.id)).all()


def ids_in(session: Session, states: Collection[str]) -> Sequence[str]:
    """Sorted ids of all federations in one of these states."""
    return session.scalars(select(Federation.id).where(Federation.state.in_(states)).order_by(Federation.id)).all()


def clients(session: Session, federation_id: str) -> Sequence[Client]:
    """All clients of the federation, by ordinal."""
    statement = select(Client).where(Client.federation_id == federation_id)
    return session.scalars(statement.order_by(Client.ordinal)).all()


def participants(session: Session, federation_ids: Collection[str]) -> list[Participant]:
    """Clients of these federations that are registered or ready, by ordinal."""
    columns = (Client.federation_id, Client.id, Client.state, Client.evaluates_only)
    statement = select(*columns).where(
        Client.federation_id.in_(federation_ids), Client.state.in_(("registered", "ready"))
    )
    return [Participant(*row) for row in session.execute(statement.order_by(Client.ordinal))]


def describe_jobs(session: Session, federation_ids: Collection[str], states: Collection[str]) -> list[DescribeJob]:
    """Describe jobs of these federations in one of these states, sorted by submission time, then by ordinal."""
    columns = (
        Job.federation_id,
        Job.id,
        Job.state,
        Job.worker_id,
        Job.client_id,
        Client.state,
        Client.evaluates_only,
    )
    statement = (
        select(*columns)
        .join(Client, Job.client_id == Client.id)
        .where(Job.federation_id.in_(federation_ids), Job.kind == "describe", Job.state.in_(states))
    )
    return [DescribeJob(*row) for row in session.execute(statement.order_by(Job.submitted_at, Client.ordinal))]
