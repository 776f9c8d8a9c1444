"""Access to federations and their clients: permissions to read and to change them."""

from sqlalchemy.orm import Session

from coordinator.auth.principals import Principal, require_role
from coordinator.clients import lifecycle, repository
from coordinator.db.sessions import lock_row
from coordinator.errors import Forbidden, NotFound
from coordinator.models import Client, Federation
from coordinator.queue.wakeups import ADVANCE_FEDERATION, ADVANCE_ROUND, nudge


def may_see(session: Session, principal: Principal, federation: Federation) -> bool:
    """True if the principal's organization owns the federation, is invited to it or is a member."""
    if principal.role == "admin":
        return True
    organization_id = principal.organization_id
    if organization_id is None or principal.kind != "key":
        return False
    invitation = repository.invitation(session, federation.id, organization_id)
    return federation.organization_id == organization_id or (
        invitation is not None and invitation.state in lifecycle.MEMBER
    )


def visible_federation(session: Session, principal: Principal, federation_id: str) -> Federation:
    """The federation, if the principal may see it. Raises NotFound."""
    federation = session.get(Federation, federation_id)
    if federation is None or not may_see(session, principal, federation):
        raise NotFound("federation_unknown", f"There is no federation {federation_id}, or you may not see it.")
    return federation


def visible_client(session: Session, principal: Principal, client_id: str) -> Client:
    """The client, for its organization and the federation's owner. Raises NotFound."""
    client = session.get(Client, client_id)
    federation = session.get(Federation, client.federation_id) if client else None
    if client is None or federation is None or not _sees_client(principal, client, federation):
        raise NotFound("client_unknown", f"There is no client {client_id}, or you may not see it.")
    return client


def _sees_client(principal: Principal, client: Client, federation: Federation) -> bool:
    mine = principal.organization_id in (client.organization_id, federation.organization_id)
    return principal.role == "admin" or (principal.kind == "key" and mine)


def lock_own_client(session: Session, principal: Principal, client_id: str) -> Client:
    client = visible_client(session, principal, client_id)
    if principal.role != "admin" and client.organization_id != principal.organization_id:
        raise Forbidden("client_of_another", "Only the organization that registered this client may change it.")
    require_role(principal, "owner", "operator")
    return lock_row(session, Client, client.id) or client


def lock_for_owner(session: Session, principal: Principal, client_id: str) -> Client:
    """Locks the client for the owner of its federation. Raises NotFound, Forbidden."""
    client = visible_client(session, principal, client_id)
    check_owner(principal, session.get_one(Federation, client.federation_id))
    require_role(principal, "owner", "operator")
    return lock_row(session, Client, client.id) or client


def check_owner(principal: Principal, federation: Federation) -> None:
    if principal.role != "admin" and federation.organization_id != principal.organization_id:
        raise Forbidden("not_the_owner", "Only the federation's owner may do this.")


def lock_changeable(session: Session, principal: Principal, federation_id: str) -> Federation:
    federation = visible_federation(session, principal, federation_id)
    require_role(principal, "owner", "operator")
    federation = lock_row(session, Federation, federation.id) or federation
    lifecycle.check_live(federation.state)
    return federation


def organization_of(principal: Principal) -> str:
    if principal.organization_id is None:
        raise Forbidden(
            "organization_needed", "Only an organization itself may do this: use a key of the organization."
        )
    return principal.organization_id


def scope(session: Session, principal: Principal, federation_id: str) -> str | None:
    federation = visible_federation(session, principal, federation_id)
    whole = principal.role == "admin" or federation.organization_id == principal.organization_id
    return None if whole else principal.organization_id


def wake(session: Session, federation_id: str) -> None:
    nudge(session, ADVANCE_FEDERATION, federation_id)
    for round_id in repository.open_round_ids(session, federation_id):
        nudge(session, ADVANCE_ROUND, round_id)


def audit_audience(session: Session, federation: Federation) -> list[str]:
    """Sorted ids of the organizations whose audit logs record the federation: its owner and all that accepted."""
    return sorted({federation.organization_id, *repository.accepted_organizations(session, federation.id)})
