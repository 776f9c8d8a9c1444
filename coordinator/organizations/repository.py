"""Queries over organizations and their records. Only `service` uses them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Double, Row, and_, case, cast, func, select
from sqlalchemy.orm import Session

from coordinator.models import (
    ApiKey,
    AuditEntry,
    Client,
    EnrollmentToken,
    Federation,
    Job,
    LedgerEntry,
    Organization,
    Round,
)
from coordinator.web.pagination import Page, PageRequest


def by_name(session: Session, name: str) -> Organization | None:
    """The organization with this name."""
    return session.scalars(select(Organization).where(Organization.name == name)).one_or_none()


def organizations(session: Session, page: PageRequest, only: str | None) -> Page[Organization]:
    """All organizations, or only the one with the id `only`."""
    statement = select(Organization)
    return page.rows(
        session, statement if only is None else statement.where(Organization.id == only), Organization.id
    )


def api_keys(session: Session, page: PageRequest, organization_id: str) -> Page[ApiKey]:
    """The organization's API keys, including revoked ones."""
    return page.rows(session, select(ApiKey).where(ApiKey.organization_id == organization_id), ApiKey.id)


def enrollment_tokens(session: Session, page: PageRequest, organization_id: str) -> Page[EnrollmentToken]:
    """The organization's enrollment tokens, including revoked, expired and used-up ones."""
    statement = select(EnrollmentToken).where(EnrollmentToken.organization_id == organization_id)
    return page.rows(session, statement, EnrollmentToken.id)


def audit_entries(
    session: Session, page: PageRequest, chain: str, action: str | None, since: datetime | None
) -> Page[AuditEntry]:
    """Entries of one chain by number, filtered by `action` and `since` unless these are None."""
    statement = select(AuditEntry).where(AuditEntry.chain == chain)
    if action is not None:
        statement = statement.where(AuditEntry.action == action)
    if since is not None:
        statement = statement.where(AuditEntry.at >= since)
    return page.rows(session, statement, AuditEntry.number)


def deeds(session: Session, *where: ColumnElement[bool]) -> Sequence[Row[Any]]:
    """Contributions of organizations to existing federations: the columns of `LedgerEntry` except the last.

    Sums over the jobs of all clients that match `where`, one row for each organization and federation.
    """
    train = Job.kind == "train"
    is_accepted = and_(train, Job.state == "accepted")
    in_training = and_(is_accepted, Round.kind == "train")
    statement = (
        select(
            Client.organization_id,
            Client.federation_id,
            Federation.name.label("federation_name"),
            func.count(case((in_training, Round.number)).distinct()).label("rounds"),
            _sum(case((in_training, _whole("update", "examples")))).label("examples"),
            _sum(_whole("download_bytes")).label("download_bytes"),
            _sum(_whole("upload_bytes")).label("upload_bytes"),
            _sum(case((train, cast(_submission_text("seconds", "training"), Double)))).label("training_seconds"),
            func.count(case((is_accepted, 1))).label("updates_accepted"),
            *(
                func.count(case((and_(train, Job.state == state), 1))).label(f"updates_{state}")
                for state in ("rejected", "failed", "declined", "expired")
            ),
        )
        .join(Federation, Client.federation_id == Federation.id)
        .outerjoin(Job, Job.client_id == Client.id)
        .outerjoin(Round, Job.round_id == Round.id)
        .where(*where)
        .group_by(Client.organization_id, Client.federation_id, Federation.name)
    )
    return session.execute(statement.order_by(Client.organization_id, Client.federation_id)).all()


def _submission_text(*path: str) -> ColumnElement[str]:
    text: ColumnElement[str] = Job.submission[path].as_string()
    return text


def _whole(*path: str) -> ColumnElement[int]:
    return cast(_submission_text(*path), BigInteger)


def _sum(value: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(value), 0)


def deeds_in_deleted(session: Session, organization_id: str) -> Sequence[LedgerEntry]:
    """Contributions of the organization to deleted federations."""
    return session.scalars(select(LedgerEntry).where(LedgerEntry.organization_id == organization_id)).all()
