"""Enrollment tokens for an organization's workers."""

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from coordinator import audit
from coordinator.auth.credentials import ENROLLMENT_PREFIX, new_secret, secret_matches, split_secret
from coordinator.auth.principals import Principal, require_role
from coordinator.db.sessions import lock_row
from coordinator.errors import NotFound, Unauthenticated
from coordinator.models import EnrollmentToken
from coordinator.models.base import new_id
from coordinator.organizations import repository
from coordinator.organizations.schemas import EnrollmentTokenCreate
from coordinator.organizations.service import members
from coordinator.web.pagination import Page, PageRequest


def create_token(
    session: Session, principal: Principal, organization_id: str, request: EnrollmentTokenCreate, now: datetime
) -> tuple[EnrollmentToken, str]:
    """Creates an enrollment token. Returns it with its text. Raises NotFound, Forbidden."""
    require_role(principal, "owner", "operator", organization_id=organization_id)
    members.show(session, organization_id)
    identity = new_id("tok")
    text, secret_sha256 = new_secret(ENROLLMENT_PREFIX, identity)
    token = EnrollmentToken(
        id=identity, organization_id=organization_id, name=request.name, secret_sha256=secret_sha256, uses=0,
        max_uses=request.max_uses, expires_at=now + timedelta(seconds=request.expires_in_seconds), created_at=now,
    )  # fmt: skip
    session.add(token)
    terms = {"name": token.name, "max_uses": token.max_uses, "expires_at": token.expires_at.isoformat()}
    audit.append(session, principal.id, "enrollment_token.created", token.id, [organization_id], **terms)
    return token, text


def list_tokens(
    session: Session, principal: Principal, organization_id: str, page: PageRequest
) -> Page[EnrollmentToken]:
    """The organization's enrollment tokens. Raises NotFound, Forbidden."""
    require_role(principal, "owner", "operator", organization_id=organization_id)
    members.show(session, organization_id)
    return repository.enrollment_tokens(session, page, organization_id)


def revoke_token(session: Session, principal: Principal, organization_id: str, token_id: str, now: datetime) -> None:
    """Revokes the token. Workers that enrolled with it stay. Raises NotFound, Forbidden."""
    require_role(principal, "owner", "operator", organization_id=organization_id)
    token = lock_row(session, EnrollmentToken, token_id)
    if token is None or token.organization_id != organization_id:
        raise NotFound("not_found", "There is no enrollment token with this id in this organization.")
    if token.revoked_at is None:
        token.revoked_at = now
        audit.append(session, principal.id, "enrollment_token.revoked", token.id, [organization_id], name=token.name)


def find_token(session: Session, text: str) -> EnrollmentToken:
    """The enrollment token with this text, locked; it may be revoked or expired. Raises Unauthenticated."""
    parts = split_secret(ENROLLMENT_PREFIX, text)
    token = lock_row(session, EnrollmentToken, parts[0]) if parts else None
    if parts is None or token is None or not secret_matches(parts[1], token.secret_sha256):
        raise Unauthenticated("token_invalid", "This enrollment token is unknown.")
    return token


def use_token(token: EnrollmentToken, now: datetime) -> None:
    """Counts one use. Raises Unauthenticated if the token is revoked, expired or used up."""
    if token.revoked_at is not None:
        raise Unauthenticated("token_revoked", "This enrollment token was revoked. Ask for a new one.")
    if token.expires_at <= now:
        raise Unauthenticated("token_expired", "This enrollment token has expired. Ask for a new one.")
    if token.uses >= token.max_uses:
        raise Unauthenticated("token_used_up", f"All {token.max_uses} uses of this enrollment token are used up.")
    token.uses += 1
