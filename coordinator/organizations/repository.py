"""Statements over organizations, API keys and enrollment tokens. Used by `service` alone."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.models import ApiKey, EnrollmentToken, Organization
from coordinator.pagination import Page, PageRequest


def by_name(session: Session, name: str) -> Organization | None:
    """The organization of that name."""
    return session.scalars(select(Organization).where(Organization.name == name)).one_or_none()


def organizations(session: Session, page: PageRequest, only: str | None) -> Page[Organization]:
    """All organizations, or the one with the id `only`."""
    statement = select(Organization)
    return page.rows(
        session, statement if only is None else statement.where(Organization.id == only), Organization.id
    )


def api_keys(session: Session, page: PageRequest, organization_id: str) -> Page[ApiKey]:
    """The organization's API keys, also the revoked ones."""
    return page.rows(session, select(ApiKey).where(ApiKey.organization_id == organization_id), ApiKey.id)


def enrollment_tokens(session: Session, page: PageRequest, organization_id: str) -> Page[EnrollmentToken]:
    """The organization's enrollment tokens, also those that no longer serve."""
    statement = select(EnrollmentToken).where(EnrollmentToken.organization_id == organization_id)
    return page.rows(session, statement, EnrollmentToken.id)
