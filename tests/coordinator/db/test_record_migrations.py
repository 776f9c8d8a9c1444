"""Migrations of audit log, ledger and webhooks, with rows in their tables."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import DBAPIError

from coordinator import audit
from coordinator.db import migration
from coordinator.db.sessions import engine, reading, utcnow, writing
from coordinator.models import Delivery, LedgerEntry, Organization, Webhook


@pytest.fixture
def before(data_folder: Path) -> None:
    """A database of the version before, with an organization in it."""
    migration.downgrade("0004")
    with writing() as session:
        session.add(Organization(id="org_1", name="Bank", created_at=utcnow()))


def verified() -> list[str]:
    with reading() as session:
        return [line.rpartition(",")[0] for line in audit.verify(session)]


def append() -> None:
    with writing() as session:
        audit.append(session, "key_1", "api_key.created", "key_2", ["org_1", None])


@pytest.mark.usefixtures("before")
class TestUpAndDown:
    def test_an_audit_log_survives_the_steps_above_it_and_goes_with_its_own(self) -> None:
        migration.upgrade("0005")
        append()
        migration.upgrade()
        append()
        migration.downgrade("0005")
        assert verified() == ["installation: 2 entries", "org_1: 2 entries"]
        with pytest.raises(DBAPIError, match="append-only"), engine().begin() as connection:
            connection.execute(text("DELETE FROM audit_entries"))
        migration.downgrade("0004")
        assert not inspect(engine()).has_table("audit_entries")
        migration.upgrade()
        append()
        assert verified() == ["installation: 1 entries", "org_1: 1 entries"]

    def test_a_kept_ledger_survives_the_steps_above_it(self) -> None:
        migration.upgrade("0007")
        with writing() as session:
            session.add(
                LedgerEntry(
                    organization_id="org_1", federation_id="fed_1", federation_name="tickets", rounds=3,
                    examples=2**40, download_bytes=2**50, upload_bytes=2**50, training_seconds=1.5,
                    updates_accepted=3, updates_rejected=0, updates_failed=0, updates_declined=0, updates_expired=0,
                    deleted_at=utcnow(),
                )
            )  # fmt: skip
        migration.upgrade()
        migration.downgrade("0007")
        with reading() as session:
            row = session.scalars(select(LedgerEntry)).one()
            assert (row.examples, row.download_bytes, row.training_seconds) == (2**40, 2**50, 1.5)
        migration.downgrade("0006")
        migration.upgrade()
        with reading() as session:
            assert list(session.scalars(select(LedgerEntry))) == []

    def test_webhooks_and_deliveries_go_together_and_leave_the_organization(self) -> None:
        migration.upgrade("0008")
        now = utcnow()
        with writing() as session:
            session.add(
                Webhook(
                    id="whk_1", organization_id="org_1", url="https://a", events=["*"], secret="s", created_at=now
                )
            )
            session.flush()
            session.add(
                Delivery(
                    id="dlv_1", webhook_id="whk_1", federation_id="fed_1", event="round.closed", body="{}",
                    state="pending", next_attempt_at=now, give_up_at=now + timedelta(days=1), created_at=now,
                )
            )  # fmt: skip
        with reading() as session:
            assert session.scalars(select(Delivery)).one().number == 1
        migration.downgrade("0007")
        migration.upgrade()
        with reading() as session:
            assert list(session.scalars(select(Webhook))) == []
            assert [row.name for row in session.scalars(select(Organization))] == ["Bank"]
