"""Queries over invitations and clients. Only `service` uses them."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from coordinator.models import Client, Federation, Invitation, Organization, Round, Worker
from coordinator.models.base import new_id

_ENDED_ROUND = ("closed", "failed", "withdrawn")


def add_invitation(
    session: Session, federation_id: str, organization_id: str, state: str, now: datetime
) -> Invitation:
    row = Invitation(federation_id=federation_id, organization_id=organization_id, state=state, created_at=now)
    session.add(row)
    return row


def add_client(session: Session, federation: Federation, worker: Worker, dataset: str, now: datetime) -> Client:
    """Adds a client with the federation's next ordinal."""
    row = Client(
        id=new_id("cli"),
        federation_id=federation.id,
        organization_id=worker.organization_id,
        worker_id=worker.id,
        dataset=dataset,
        ordinal=federation.next_ordinal,
        state="registered",
        rounds_taken=0,
        version=0,
        created_at=now,
    )
    federation.next_ordinal += 1
    session.add(row)
    return row


def invitation(session: Session, federation_id: str, organization_id: str) -> Invitation | None:
    """The organization's invitation to the federation, or None."""
    return session.get(Invitation, (federation_id, organization_id))


def invitation_now(session: Session, federation_id: str, organization_id: str) -> Invitation | None:
    """Like `invitation`, but read again: current once the federation's row is locked."""
    return session.get(Invitation, (federation_id, organization_id), populate_existing=True)


def accepted_guests(session: Session, federation: Federation) -> Sequence[Invitation]:
    """Accepted invitations of all organizations but the owner, sorted by organization id."""
    statement = invitations_of_federation(federation.id, None).where(
        Invitation.state == "accepted", Invitation.organization_id != federation.organization_id
    )
    by_organization = statement.order_by(Invitation.organization_id).execution_options(populate_existing=True)
    return session.scalars(by_organization).all()


def accepted_organizations(session: Session, federation_id: str) -> Sequence[str]:
    """Ids of the organizations that accepted."""
    statement = select(Invitation.organization_id).where(Invitation.federation_id == federation_id)
    return session.scalars(statement.where(Invitation.state == "accepted")).all()


def invitations_of_federation(federation_id: str, organization_id: str | None) -> Select[Invitation]:
    """All invitations of a federation, or only that of one organization."""
    statement = select(Invitation).where(Invitation.federation_id == federation_id)
    return statement if organization_id is None else statement.where(Invitation.organization_id == organization_id)


def invitations_of_organization(organization_id: str) -> Select[Invitation]:
    """All invitations of an organization."""
    return select(Invitation).where(Invitation.organization_id == organization_id)


def organization_names(session: Session, ids: Sequence[str]) -> dict[str, str]:
    """Organization id -> name."""
    rows = session.execute(select(Organization.id, Organization.name).where(Organization.id.in_(ids)))
    return {row.id: row.name for row in rows}


def registration(session: Session, federation_id: str, worker_id: str, dataset: str) -> Client | None:
    """The client of this worker's data set, in any state."""
    statement = select(Client).where(
        Client.federation_id == federation_id, Client.worker_id == worker_id, Client.dataset == dataset
    )
    return session.scalars(statement).one_or_none()


def clients_statement(federation_id: str, organization_id: str | None) -> Select[Client]:
    """All clients of a federation, or only those of one organization."""
    statement = select(Client).where(Client.federation_id == federation_id)
    return statement if organization_id is None else statement.where(Client.organization_id == organization_id)


def clients(session: Session, federation_id: str, *states: str) -> list[Client]:
    """Clients in one of `states`, sorted by ordinal."""
    statement = select(Client).where(Client.federation_id == federation_id, Client.state.in_(states))
    return list(session.scalars(statement.order_by(Client.ordinal)))


def clients_by_ordinal(session: Session, federation_id: str, ordinals: Sequence[int]) -> list[Client]:
    """Clients with these ordinals in any state, sorted by ordinal."""
    statement = select(Client).where(Client.federation_id == federation_id, Client.ordinal.in_(ordinals))
    return list(session.scalars(statement.order_by(Client.ordinal)))


def open_round_ids(session: Session, federation_id: str) -> list[str]:
    """Ids of the federation's rounds that have not ended."""
    statement = select(Round.id).where(Round.federation_id == federation_id, Round.state.not_in(_ENDED_ROUND))
    return list(session.scalars(statement))
