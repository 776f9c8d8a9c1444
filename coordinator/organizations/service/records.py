"""Records of an organization: its audit log and its ledger."""

from datetime import datetime

from sqlalchemy.orm import Session

from coordinator import audit
from coordinator.auth.principals import Principal, require_role
from coordinator.models import AuditEntry, Client, Federation, LedgerEntry
from coordinator.organizations import repository
from coordinator.organizations.schemas import Deeds, Ledger, LedgerEntryResponse
from coordinator.organizations.service import members
from coordinator.web.pagination import Page, PageRequest


def audit_of(
    session: Session,
    principal: Principal,
    organization_id: str,
    action: str | None,
    since: datetime | None,
    page: PageRequest,
) -> Page[AuditEntry]:
    """The organization's chain, oldest entry first, to its owners and to admins. Raises NotFound, Forbidden."""
    require_role(principal, "owner", organization_id=organization_id)
    members.show(session, organization_id)
    return repository.audit_entries(session, page, organization_id, action, since)


def audit_of_installation(
    session: Session, action: str | None, since: datetime | None, page: PageRequest
) -> Page[AuditEntry]:
    """The installation's chain: entries without an organization, and created organizations."""
    return repository.audit_entries(session, page, audit.INSTALLATION, action, since)


def ledger_of(session: Session, principal: Principal, organization_id: str, page: PageRequest) -> Ledger:
    """The organization's ledger: a page of federations by id, and the total. Raises NotFound."""
    members.show_to(session, principal, organization_id)
    live = repository.deeds(session, Client.organization_id == organization_id)
    rows = [*live, *repository.deeds_in_deleted(session, organization_id)]
    entries = sorted(map(LedgerEntryResponse.model_validate, rows), key=_federation_id)
    total = Deeds(**{name: sum(getattr(entry, name) for entry in entries) for name in Deeds.model_fields})
    entry_page = page.of(entries, _federation_id)
    return Ledger(items=list(entry_page.rows), next_cursor=entry_page.next_cursor, total=total)


def _federation_id(entry: LedgerEntryResponse) -> str:
    return entry.federation_id


def keep_deeds(session: Session, federation: Federation, now: datetime) -> None:
    """Saves each organization's contributions to a federation, before its rows are deleted."""
    for row in repository.deeds(session, Client.federation_id == federation.id):
        session.add(LedgerEntry(**row._asdict(), deleted_at=now))
