"""Organizations: creation by the installation's admin, and read access of their own keys."""

from datetime import datetime

from sqlalchemy.orm import Session

from coordinator import audit
from coordinator.auth.principals import Principal, require_role
from coordinator.errors import Conflict, NotFound
from coordinator.models import Organization
from coordinator.models.base import new_id
from coordinator.organizations import repository
from coordinator.organizations.schemas import OrganizationCreate
from coordinator.web.pagination import Page, PageRequest


def create(session: Session, principal: Principal, request: OrganizationCreate, now: datetime) -> Organization:
    """Creates an organization. Raises Conflict if the name is taken."""
    if repository.by_name(session, request.name) is not None:
        raise Conflict("name_taken", f"There is already an organization named {request.name!r}.")
    organization = Organization(id=new_id("org"), name=request.name, created_at=now)
    session.add(organization)
    audit.append(
        session,
        principal.id,
        "organization.created",
        organization.id,
        [None, organization.id],
        name=organization.name,
    )
    return organization


def show(session: Session, organization_id: str) -> Organization:
    """The organization. Raises NotFound."""
    organization = session.get(Organization, organization_id)
    if organization is None:
        raise NotFound("not_found", "There is no organization with this id.")
    return organization


def show_to(session: Session, principal: Principal, organization_id: str) -> Organization:
    """The organization, to its own keys and to admins. Raises NotFound."""
    require_role(principal, "owner", "operator", "viewer", organization_id=organization_id)
    return show(session, organization_id)


def list_for(session: Session, principal: Principal, page: PageRequest) -> Page[Organization]:
    """All organizations for an admin, otherwise the principal's own."""
    return repository.organizations(session, page, None if principal.role == "admin" else principal.organization_id)
