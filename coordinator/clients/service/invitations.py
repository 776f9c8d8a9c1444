"""Organisations are invited, accept, decline and leave."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from coordinator import audit, events
from coordinator.clients import lifecycle, repository
from coordinator.clients.schemas import InvitationAnswer, invitation_answer
from coordinator.clients.service import access, registrations
from coordinator.errors import Conflict, Forbidden
from coordinator.models import Federation, Invitation, Organization
from coordinator.pagination import Page, PageRequest
from coordinator.security import Principal


def invite(
    session: Session, principal: Principal, federation_id: str, organization_id: str, now: datetime
) -> Invitation:
    """Invites an organisation; one that declined or left may be invited again."""
    federation = access.changeable(session, principal, federation_id)
    if principal.role != "admin" and federation.organization_id != principal.organization_id:
        raise Forbidden("not_the_owner", "Only the federation's owner invites organizations.")
    if session.get(Organization, organization_id) is None:
        raise lifecycle.refused(
            "organization_unknown", "/organization_id", f"there is no organization {organization_id}"
        )
    invitation = repository.invitation(session, federation.id, organization_id)
    if invitation is None:
        invitation = repository.add_invitation(session, federation.id, organization_id, "invited", now)
    else:
        invitation.state = lifecycle.move_invitation(invitation.state, "invite")
        invitation.reason = invitation.answered_at = None
    events.append(session, federation.id, "organization.invited", organization_id=organization_id)
    _audit(session, principal, federation, invitation)
    return invitation


def admit_owner(session: Session, federation: Federation, now: datetime) -> Invitation:
    """The owner's own part in a new federation: accepted from the start."""
    invitation = repository.add_invitation(session, federation.id, federation.organization_id, "accepted", now)
    invitation.answered_at = now
    return invitation


def accept(session: Session, principal: Principal, federation_id: str, now: datetime) -> Invitation:
    """The caller's organisation takes part from now on."""
    return _answer(session, principal, federation_id, "accept", None, now)


def decline(
    session: Session, principal: Principal, federation_id: str, reason: str | None, now: datetime
) -> Invitation:
    """The caller's organisation does not want to take part."""
    return _answer(session, principal, federation_id, "decline", reason, now)


def leave(
    session: Session, principal: Principal, federation_id: str, reason: str | None, now: datetime
) -> Invitation:
    """The caller's organisation takes no part any more: all its clients leave."""
    invitation = _answer(session, principal, federation_id, "leave", reason, now)
    for client in repository.clients(session, federation_id, "registered", "ready", "out"):
        if client.organization_id == invitation.organization_id:
            registrations.move_to_left(session, client, reason)
    access.wake(session, federation_id)
    return invitation


def _answer(
    session: Session,
    principal: Principal,
    federation_id: str,
    event: lifecycle.InvitationEvent,
    reason: str | None,
    now: datetime,
) -> Invitation:
    federation = access.changeable(session, principal, federation_id)
    invitation = repository.invitation(session, federation_id, access.speaks_for(principal))
    if invitation is None:
        raise Conflict("not_invited", f"Your organization was not invited to federation {federation_id}.")
    invitation.state = lifecycle.move_invitation(invitation.state, event)
    invitation.reason, invitation.answered_at = reason, now
    data = {"organization_id": invitation.organization_id, "reason": reason}
    events.append(session, federation_id, f"organization.{invitation.state}", **data)
    _audit(session, principal, federation, invitation)
    return invitation


def _audit(session: Session, principal: Principal, federation: Federation, invitation: Invitation) -> None:
    of = [federation.organization_id, invitation.organization_id]
    data = {"organization_id": invitation.organization_id, "reason": invitation.reason}
    audit.append(session, principal.id, f"invitation.{invitation.state}", federation.id, of, **data)


def invitations_of(session: Session, principal: Principal, federation_id: str, page: PageRequest) -> Page[Invitation]:
    """All of a federation's invitations for its owner; for others their own."""
    statement = repository.invitations_of_federation(federation_id, access.scope(session, principal, federation_id))
    return page.rows(session, statement, Invitation.organization_id)


def my_invitations(session: Session, principal: Principal, page: PageRequest) -> Page[Invitation]:
    """The part of the caller's organisation in every federation it was invited to or owns."""
    statement = repository.invitations_of_organization(access.speaks_for(principal))
    return page.rows(session, statement, Invitation.federation_id)


def answers(session: Session, invitations: Sequence[Invitation]) -> list[InvitationAnswer]:
    """The answers for these invitations, in their order."""
    federations = {row.federation_id: session.get_one(Federation, row.federation_id) for row in invitations}
    ids = {row.organization_id for row in invitations} | {row.organization_id for row in federations.values()}
    names = repository.organization_names(session, sorted(ids))
    return [invitation_answer(row, federations[row.federation_id], names) for row in invitations]
