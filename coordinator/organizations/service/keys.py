"""API keys, of organizations and of the installation."""

from datetime import datetime

from sqlalchemy.orm import Session

from coordinator import audit
from coordinator.credentials import KEY_PREFIX, new_secret
from coordinator.database import lock_row
from coordinator.errors import NotFound
from coordinator.models import ApiKey
from coordinator.models.base import new_id
from coordinator.organizations import repository
from coordinator.organizations.schemas import ApiKeyCreate
from coordinator.organizations.service import members
from coordinator.pagination import Page, PageRequest
from coordinator.security import Principal, require_role


def create_admin_key(session: Session, name: str, now: datetime) -> str:
    """A new key of the installation; its text is known here and now alone."""
    return _add_key(session, audit.COORDINATOR, None, name, "admin", now)[1]


def create_key(
    session: Session, principal: Principal, organization_id: str, request: ApiKeyCreate, now: datetime
) -> tuple[ApiKey, str]:
    """A new key of the organization and its text. Raises NotFound, Forbidden."""
    require_role(principal, "owner", organization_id=organization_id)
    members.show(session, organization_id)
    return _add_key(session, principal.id, organization_id, request.name, request.role, now)


def _add_key(
    session: Session, by: str, organization_id: str | None, name: str, role: str, now: datetime
) -> tuple[ApiKey, str]:
    identity = new_id("key")
    text, secret_sha256 = new_secret(KEY_PREFIX, identity)
    key = ApiKey(
        id=identity,
        organization_id=organization_id,
        name=name,
        role=role,
        secret_sha256=secret_sha256,
        created_at=now,
    )
    session.add(key)
    audit.append(session, by, "api_key.created", key.id, [organization_id], name=name, role=role)
    return key, text


def list_keys(session: Session, principal: Principal, organization_id: str, page: PageRequest) -> Page[ApiKey]:
    """The organization's keys. Raises NotFound, Forbidden."""
    require_role(principal, "owner", organization_id=organization_id)
    members.show(session, organization_id)
    return repository.api_keys(session, page, organization_id)


def revoke_key(session: Session, principal: Principal, organization_id: str, key_id: str, now: datetime) -> None:
    """Ends the key from the next request on. Revoking twice is no error. Raises NotFound, Forbidden."""
    require_role(principal, "owner", organization_id=organization_id)
    key = lock_row(session, ApiKey, key_id)
    if key is None or key.organization_id != organization_id:
        raise NotFound("not_found", "There is no API key with this id in this organization.")
    if key.revoked_at is None:
        key.revoked_at = now
        audit.append(session, principal.id, "api_key.revoked", key.id, [organization_id], name=key.name)
