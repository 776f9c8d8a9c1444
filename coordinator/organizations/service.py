"""Organizations, their API keys, and the tokens with which their workers enrol."""

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from coordinator.database import lock_row
from coordinator.errors import Conflict, NotFound, Unauthenticated
from coordinator.models import ApiKey, EnrollmentToken, Organization
from coordinator.models.base import new_id
from coordinator.organizations import repository
from coordinator.organizations.schemas import ApiKeyCreate, EnrollmentTokenCreate, OrganizationCreate
from coordinator.pagination import Page, PageRequest
from coordinator.security import (
    ENROLLMENT_PREFIX,
    KEY_PREFIX,
    Principal,
    new_secret,
    require_role,
    secret_matches,
    split_secret,
)


def create(session: Session, request: OrganizationCreate, now: datetime) -> Organization:
    """A new organization. Raises Conflict if the name is taken."""
    if repository.by_name(session, request.name) is not None:
        raise Conflict("name_taken", f"There is already an organization named {request.name!r}.")
    organization = Organization(id=new_id("org"), name=request.name, created_at=now)
    session.add(organization)
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
    """All organizations to an admin, to others their own."""
    return repository.organizations(session, page, None if principal.role == "admin" else principal.organization_id)


# ---- API keys


def create_admin_key(session: Session, name: str, now: datetime) -> str:
    """A new key of the installation; its text is known here and now alone."""
    return _add_key(session, None, name, "admin", now)[1]


def create_key(
    session: Session, principal: Principal, organization_id: str, request: ApiKeyCreate, now: datetime
) -> tuple[ApiKey, str]:
    """A new key of the organization and its text. Raises NotFound, Forbidden."""
    require_role(principal, "owner", organization_id=organization_id)
    show(session, organization_id)
    return _add_key(session, organization_id, request.name, request.role, now)


def _add_key(
    session: Session, organization_id: str | None, name: str, role: str, now: datetime
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
    return key, text


def list_keys(session: Session, principal: Principal, organization_id: str, page: PageRequest) -> Page[ApiKey]:
    """The organization's keys. Raises NotFound, Forbidden."""
    require_role(principal, "owner", organization_id=organization_id)
    show(session, organization_id)
    return repository.api_keys(session, page, organization_id)


def revoke_key(session: Session, principal: Principal, organization_id: str, key_id: str, now: datetime) -> None:
    """Ends the key from the next request on. Revoking twice is no error. Raises NotFound, Forbidden."""
    require_role(principal, "owner", organization_id=organization_id)
    key = lock_row(session, ApiKey, key_id)
    if key is None or key.organization_id != organization_id:
        raise NotFound("not_found", "There is no API key with this id in this organization.")
    key.revoked_at = key.revoked_at or now


# ---- enrollment tokens


def create_token(
    session: Session, principal: Principal, organization_id: str, request: EnrollmentTokenCreate, now: datetime
) -> tuple[EnrollmentToken, str]:
    """A new enrollment token and its text. Raises NotFound, Forbidden."""
    require_role(principal, "owner", "operator", organization_id=organization_id)
    show(session, organization_id)
    identity = new_id("tok")
    text, secret_sha256 = new_secret(ENROLLMENT_PREFIX, identity)
    token = EnrollmentToken(
        id=identity, organization_id=organization_id, name=request.name, secret_sha256=secret_sha256, uses=0,
        max_uses=request.max_uses, expires_at=now + timedelta(seconds=request.expires_in_seconds), created_at=now,
    )  # fmt: skip
    session.add(token)
    return token, text


def list_tokens(
    session: Session, principal: Principal, organization_id: str, page: PageRequest
) -> Page[EnrollmentToken]:
    """The organization's enrollment tokens. Raises NotFound, Forbidden."""
    require_role(principal, "owner", "operator", organization_id=organization_id)
    show(session, organization_id)
    return repository.enrollment_tokens(session, page, organization_id)


def revoke_token(session: Session, principal: Principal, organization_id: str, token_id: str, now: datetime) -> None:
    """Ends the token; workers that enrolled with it stay. Raises NotFound, Forbidden."""
    require_role(principal, "owner", "operator", organization_id=organization_id)
    token = lock_row(session, EnrollmentToken, token_id)
    if token is None or token.organization_id != organization_id:
        raise NotFound("not_found", "There is no enrollment token with this id in this organization.")
    token.revoked_at = token.revoked_at or now


def find_token(session: Session, text: str) -> EnrollmentToken:
    """The enrollment token of this text, locked, whether or not it still serves. Raises Unauthenticated."""
    parts = split_secret(ENROLLMENT_PREFIX, text)
    token = lock_row(session, EnrollmentToken, parts[0]) if parts else None
    if parts is None or token is None or not secret_matches(parts[1], token.secret_sha256):
        raise Unauthenticated("token_invalid", "This enrollment token is not known here.")
    return token


def use_token(token: EnrollmentToken, now: datetime) -> None:
    """Counts one use. Raises Unauthenticated if the token is revoked, expired or used up."""
    if token.revoked_at is not None:
        raise Unauthenticated("token_revoked", "This enrollment token was revoked. Ask for a new one.")
    if token.expires_at <= now:
        raise Unauthenticated("token_expired", "This enrollment token has expired. Ask for a new one.")
    if token.uses >= token.max_uses:
        raise Unauthenticated("token_used_up", f"All {token.max_uses} uses of this enrollment token are taken.")
    token.uses += 1
