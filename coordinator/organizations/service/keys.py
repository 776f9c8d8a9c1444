"""API keys of organizations and of the installation."""

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from coordinator import audit
from coordinator.auth.credentials import KEY_PREFIX, new_secret
from coordinator.auth.principals import Principal, require_role
from coordinator.db.sessions import lock_row
from coordinator.errors import FieldError, NotFound, Unprocessable
from coordinator.models import ApiKey
from coordinator.models.base import new_id
from coordinator.organizations import repository
from coordinator.organizations.schemas import ApiKeyCreate
from coordinator.organizations.service import members
from coordinator.settings import MAX_KEY_DAYS
from coordinator.web.pagination import Page, PageRequest


def create_admin_key(session: Session, name: str, now: datetime, days: int | None = None) -> str:
    """Creates an admin key of the installation, valid for `days`. Returns its text, which is not stored."""
    expires_at = None if days is None else now + timedelta(days=days)
    return _add_key(session, audit.COORDINATOR, None, name, "admin", expires_at, now)[1]


def create_key(
    session: Session, principal: Principal, organization_id: str, request: ApiKeyCreate, now: datetime
) -> tuple[ApiKey, str]:
    """Creates a key. Returns it with its text. Raises NotFound, Forbidden, Unprocessable (`expires_at`)."""
    require_role(principal, "owner", organization_id=organization_id)
    members.show(session, organization_id)
    if request.expires_at is not None:
        _check_expiry(request.expires_at, now)
    return _add_key(session, principal.id, organization_id, request.name, request.role, request.expires_at, now)


def _check_expiry(expires_at: datetime, now: datetime) -> None:
    if now < expires_at <= now + timedelta(days=MAX_KEY_DAYS):
        return
    detail = "is in the past" if expires_at <= now else f"is more than {MAX_KEY_DAYS} days away"
    fault = FieldError(pointer="/expires_at", detail=detail)
    raise Unprocessable("expires_at_invalid", f"`/expires_at` {detail}.", errors=[fault])


def _add_key(
    session: Session,
    by: str,
    organization_id: str | None,
    name: str,
    role: str,
    expires_at: datetime | None,
    now: datetime,
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
        expires_at=expires_at,
    )
    session.add(key)
    terms = {"name": name, "role": role, "expires_at": None if expires_at is None else expires_at.isoformat()}
    audit.append(session, by, "api_key.created", key.id, [organization_id], **terms)
    return key, text


def list_keys(session: Session, principal: Principal, organization_id: str, page: PageRequest) -> Page[ApiKey]:
    """The organization's keys. Raises NotFound, Forbidden."""
    require_role(principal, "owner", organization_id=organization_id)
    members.show(session, organization_id)
    return repository.api_keys(session, page, organization_id)


def revoke_key(session: Session, principal: Principal, organization_id: str, key_id: str, now: datetime) -> None:
    """Revokes the key, effective with the next request. Revoking twice is no error. Raises NotFound, Forbidden."""
    require_role(principal, "owner", organization_id=organization_id)
    key = lock_row(session, ApiKey, key_id)
    if key is None or key.organization_id != organization_id:
        raise NotFound("not_found", "There is no API key with this id in this organization.")
    if key.revoked_at is None:
        key.revoked_at = now
        audit.append(session, principal.id, "api_key.revoked", key.id, [organization_id], name=key.name)
