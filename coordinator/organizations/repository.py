"""Statements over organizations and what is on record of them. Used by `service` alone."""

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


def audit_entries(
    session: Session, page: PageRequest, chain: str, action: str | None, since: datetime | None
) -> Page[AuditEntry]:
    """Entries of one chain, by number; of one action only, and not older than `since`, if these are given."""
    statement = select(AuditEntry).where(AuditEntry.chain == chain)
    if action is not None:
        statement = statement.where(AuditEntry.action == action)
    if since is not None:
        statement = statement.where(AuditEntry.at >= since)
    return page.rows(session, statement, AuditEntry.number)


def deeds(session: Session, *where: ColumnElement[bool]) -> Sequence[Row[Any]]:
    """What organizations did in federations that are there: the columns of `LedgerEntry` up to the last.

    Sums over the jobs of all clients that fit `where`, a row for each organization and federation.
    """
    train = Job.kind == "train"
    accepted = and_(train, Job.state == "accepted")
    in_training = and_(accepted, Round.kind == "train")
    statement = (
        select(
            Client.organization_id,
            Client.federation_id,
            Federation.name.label("federation_name"),
            func.count(case((in_training, Round.number)).distinct()).label("rounds"),
            _sum(case((in_training, _whole("update", "examples")))).label("examples"),
            _sum(_whole("download_bytes")).label("download_bytes"),
            _sum(_whole("upload_bytes")).label("upload_bytes"),
            _sum(case((train, cast(_submitted("seconds", "training"), Double)))).label("training_seconds"),
            func.count(case((accepted, 1))).label("updates_accepted"),
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


def _submitted(*path: str) -> ColumnElement[str]:
    told: ColumnElement[str] = Job.submission[path].as_string()
    return told


def _whole(*path: str) -> ColumnElement[int]:
    return cast(_submitted(*path), BigInteger)


def _sum(value: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(value), 0)


def kept_deeds(session: Session, organization_id: str) -> Sequence[LedgerEntry]:
    """What the organization did in federations that were deleted."""
    return session.scalars(select(LedgerEntry).where(LedgerEntry.organization_id == organization_id)).all()
