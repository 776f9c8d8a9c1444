"""Invitations of organizations, and the responses to them: accept, decline, leave."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from coordinator import audit, events
from coordinator.auth.principals import Principal
from coordinator.clients import lifecycle, repository
from coordinator.clients.schemas import InvitationResponse, invitation_response
from coordinator.clients.service import access, registrations
from coordinator.errors import Conflict, NotFound
from coordinator.models import Federation, Invitation, Organization
from coordinator.web.etags import require_agreement
from coordinator.web.pagination import Page, PageRequest


def invite(
    session: Session, principal: Principal, federation_id: str, organization_id: str, now: datetime
) -> Invitation:
    """Invites an organization. One that declined, left or was removed may be invited again."""
    federation = access.lock_changeable(session, principal, federation_id)
    access.check_owner(principal, federation)
    if session.get(Organization, organization_id) is None:
        raise lifecycle.invalid_field(
            "organization_unknown", "/organization_id", f"there is no organization {organization_id}"
        )
    invitation = repository.invitation_now(session, federation.id, organization_id)
    if invitation is None:
        invitation = repository.add_invitation(session, federation.id, organization_id, "invited", now)
    else:
        invitation.state = lifecycle.move_invitation(invitation.state, "invite")
        invitation.reason = invitation.answered_at = invitation.agreed_digest = None
    events.append(session, federation.id, "organization.invited", organization_id=organization_id)
    _audit(session, principal, federation, invitation)
    return invitation


def remove(session: Session, principal: Principal, federation_id: str, organization_id: str, now: datetime) -> None:
    """Withdraws an invitation, or removes a member with its clients. It can no longer see the federation."""
    federation = access.lock_changeable(session, principal, federation_id)
    access.check_owner(principal, federation)
    invitation = repository.invitation_now(session, federation.id, organization_id)
    if invitation is None:
        raise NotFound("invitation_unknown", f"Organization {organization_id} was not invited to this federation.")
    if organization_id == federation.organization_id:
        raise Conflict("owner_takes_part", "The owner of the federation cannot be removed; it may leave.")
    state = lifecycle.move_invitation(invitation.state, "remove")
    _set_state(session, principal, federation, invitation, state, None, now)
    _remove_clients(session, federation, organization_id, "removed")


def admit_owner(session: Session, federation: Federation, now: datetime) -> Invitation:
    """Adds the owner's invitation to a new federation, already accepted."""
    invitation = repository.add_invitation(session, federation.id, federation.organization_id, "accepted", now)
    invitation.answered_at = now
    return invitation


def accept(
    session: Session,
    principal: Principal,
    federation_id: str,
    digest: str | None,
    if_match: str | None,
    now: datetime,
) -> Invitation:
    """Accepts the invitation to the definition with this digest, which comes in the body or as `If-Match`."""
    federation, invitation = _lock_own(session, principal, federation_id)
    state = lifecycle.move_invitation(invitation.state, "accept")
    present = federation.definition_digest
    require_agreement(digest, if_match, present)
    invitation.agreed_digest = present
    _set_state(session, principal, federation, invitation, state, None, now, definition_digest=present)
    return invitation


def decline(
    session: Session, principal: Principal, federation_id: str, reason: str | None, now: datetime
) -> Invitation:
    """Declines the invitation of the caller's organization."""
    federation, invitation = _lock_own(session, principal, federation_id)
    state = lifecycle.move_invitation(invitation.state, "decline")
    _set_state(session, principal, federation, invitation, state, reason, now)
    return invitation


def leave(
    session: Session, principal: Principal, federation_id: str, reason: str | None, now: datetime
) -> Invitation:
    """The caller's organization leaves with all its clients."""
    federation, invitation = _lock_own(session, principal, federation_id)
    state = lifecycle.move_invitation(invitation.state, "leave")
    _set_state(session, principal, federation, invitation, state, reason, now)
    _remove_clients(session, federation, invitation.organization_id, reason)
    return invitation


def _remove_clients(session: Session, federation: Federation, organization_id: str, reason: str | None) -> None:
    for client in repository.clients(session, federation.id, *lifecycle.CURRENT_STATES):
        if client.organization_id == organization_id:
            registrations.mark_left(session, client, reason)
    access.wake(session, federation.id)


def renew_invitations(session: Session, principal: Principal, federation: Federation) -> None:
    """Invites all members but the owner again after a draft's definition changed. Their clients leave.

    The owner's clients stay if they fit the new definition.
    """
    facts = {"reason": lifecycle.DEFINITION_CHANGED, "definition_digest": federation.definition_digest}
    for invitation in repository.accepted_guests(session, federation):
        invitation.state = lifecycle.move_invitation(invitation.state, "ask_again")
        invitation.reason, invitation.answered_at = lifecycle.DEFINITION_CHANGED, None
        invitation.agreed_digest = None
        organization_id = invitation.organization_id
        events.append(session, federation.id, "organization.invited", organization_id=organization_id, **facts)
        _audit(session, principal, federation, invitation, definition_digest=federation.definition_digest)
    registrations.remove_after_change(session, principal, federation)


def _lock_own(session: Session, principal: Principal, federation_id: str) -> tuple[Federation, Invitation]:
    """The federation, locked, and the invitation of the caller's organization. Raises Conflict if it has none."""
    federation = access.lock_changeable(session, principal, federation_id)
    invitation = repository.invitation_now(session, federation_id, access.organization_of(principal))
    if invitation is None:
        raise Conflict("not_invited", f"Your organization was not invited to federation {federation_id}.")
    return federation, invitation


def _set_state(
    session: Session,
    principal: Principal,
    federation: Federation,
    invitation: Invitation,
    state: lifecycle.InvitationState,
    reason: str | None,
    now: datetime,
    **facts: str,
) -> None:
    invitation.state, invitation.reason, invitation.answered_at = state, reason, now
    data = {"organization_id": invitation.organization_id, "reason": reason, **facts}
    events.append(session, federation.id, f"organization.{state}", **data)
    _audit(session, principal, federation, invitation, **facts)


def _audit(
    session: Session, principal: Principal, federation: Federation, invitation: Invitation, **facts: str
) -> None:
    audience = [federation.organization_id, invitation.organization_id]
    data = {"organization_id": invitation.organization_id, "reason": invitation.reason, **facts}
    audit.append(session, principal.id, f"invitation.{invitation.state}", federation.id, audience, **data)


def invitations_of(session: Session, principal: Principal, federation_id: str, page: PageRequest) -> Page[Invitation]:
    """Invitations of a federation: all of them for its owner, otherwise that of the own organization."""
    statement = repository.invitations_of_federation(federation_id, access.scope(session, principal, federation_id))
    return page.rows(session, statement, Invitation.organization_id)


def my_invitations(session: Session, principal: Principal, page: PageRequest) -> Page[Invitation]:
    """Invitations of the caller's organization, including those to federations that it owns."""
    statement = repository.invitations_of_organization(access.organization_of(principal))
    return page.rows(session, statement, Invitation.federation_id)


def invitation_responses(session: Session, invitations: Sequence[Invitation]) -> list[InvitationResponse]:
    federations = {row.federation_id: session.get_one(Federation, row.federation_id) for row in invitations}
    ids = {row.organization_id for row in invitations} | {row.organization_id for row in federations.values()}
    names = repository.organization_names(session, sorted(ids))
    return [invitation_response(row, federations[row.federation_id], names) for row in invitations]
