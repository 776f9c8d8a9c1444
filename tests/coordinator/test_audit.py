"""The audit log: what leaves an entry, who may read it, and that a change of it is found."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from coordinator import audit
from coordinator.db.sessions import engine, reading, writing
from coordinator.models import AuditEntry
from tests.support.audit_log import actions, entries
from tests.support.service import Service, problem

CHAIN = "org_1"


def append(count: int = 1, chain: str = CHAIN) -> None:
    for index in range(count):
        with writing() as session:
            audit.append(session, "key_1", "federation.changed", f"fed_{index}", [chain], fields=["rounds", "café"])


def verified() -> list[str]:
    with reading() as session:
        return list(audit.verify(session))


def drop_triggers() -> None:
    """What somebody does first who wants to change the log behind the coordinator's back."""
    with engine().begin() as connection:
        for change in ("update", "delete"):
            where = "" if engine().dialect.name == "sqlite" else " ON audit_entries"
            connection.execute(text(f"DROP TRIGGER audit_entries_no_{change}{where}"))


def tamper(statement: str) -> None:
    with engine().begin() as connection:
        connection.execute(text(statement))


class TestChains:
    def test_each_entry_names_the_hash_of_the_one_before(self, data_folder: Path) -> None:
        append(3)
        with reading() as session:
            rows = session.query(AuditEntry).order_by(AuditEntry.number).all()
        assert [row.number for row in rows] == [1, 2, 3]
        assert [row.previous_hash for row in rows] == [audit.START, rows[0].hash, rows[1].hash]
        assert verified() == [f"{CHAIN}: 3 entries, {rows[2].hash}"]

    def test_an_act_that_was_rolled_back_leaves_nothing(self, data_folder: Path) -> None:
        def fails() -> None:
            with writing() as session:
                audit.append(session, "key_1", "federation.deleted", "fed_1", [CHAIN])
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fails()
        assert verified() == []

    def test_acts_of_one_transaction_follow_each_other_in_every_chain(self, data_folder: Path) -> None:
        with writing() as session:
            audit.append(session, "key_1", "invitation.invited", "fed_1", ["org_1", "org_2"])
            audit.append(session, "key_1", "invitation.accepted", "fed_1", ["org_2", "org_1"])
        with reading() as session:
            rows = session.query(AuditEntry).order_by(AuditEntry.chain, AuditEntry.number).all()
        assert [(row.chain, row.number, row.action) for row in rows] == [
            (chain, number, action)
            for chain in ("org_1", "org_2")
            for number, action in ((1, "invitation.invited"), (2, "invitation.accepted"))
        ]

    def test_transactions_at_once_do_not_fork_a_chain(self, data_folder: Path) -> None:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(append, [10] * 4))
        (line,) = verified()
        assert line.startswith(f"{CHAIN}: 40 entries")

    def test_an_action_that_nobody_knows_is_a_mistake_of_ours(self, data_folder: Path) -> None:
        with pytest.raises(ValueError, match="no such action"), writing() as session:
            audit.append(session, "key_1", "federation.admired", "fed_1", [CHAIN])


class TestTampering:
    @pytest.mark.parametrize(
        "statement", ["UPDATE audit_entries SET target = 'fed_9' WHERE number = 2", "DELETE FROM audit_entries"]
    )
    def test_the_database_refuses_it(self, data_folder: Path, statement: str) -> None:
        append(3)
        with pytest.raises(DBAPIError, match="append-only"):
            tamper(statement)
        assert len(verified()) == 1

    @pytest.mark.parametrize(
        ("statement", "found"),
        [
            ("UPDATE audit_entries SET target = 'fed_9' WHERE number = 2", "entry 2 .* was changed"),
            ("UPDATE audit_entries SET details = '{}' WHERE number = 3", "entry 3 .* was changed"),
            ("UPDATE audit_entries SET hash = previous_hash WHERE number = 1", "entry 1 .* was changed"),
            ("UPDATE audit_entries SET previous_hash = hash WHERE number = 2", "entry 2 does not follow entry 1"),
            ("DELETE FROM audit_entries WHERE number = 2", "entry 2 is missing"),
            ("DELETE FROM audit_entries WHERE number = 4", "ends with entry 3, its head names entry 4"),
            ("DELETE FROM audit_entries", "ends with entry 0, its head names entry 4"),
            ("DELETE FROM audit_chains", "its head is missing"),
        ],
    )
    def test_it_is_named_where_it_happened(self, data_folder: Path, statement: str, found: str) -> None:
        append(4)
        drop_triggers()
        tamper(statement)
        with pytest.raises(audit.ChainBroken, match=f"^{CHAIN}: .*{found}"):
            verified()

    def test_the_command_says_which_entry_and_fails(self, data_folder: Path) -> None:
        append(2)
        command = [sys.executable, "-m", "coordinator", "audit", "verify"]
        whole = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert (whole.returncode, whole.stdout.split(",")[0]) == (0, f"{CHAIN}: 2 entries"), whole.stderr
        drop_triggers()
        tamper("UPDATE audit_entries SET by = 'key_2' WHERE number = 2".replace(" by ", ' "by" '))
        broken = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert broken.returncode == 1
        assert f"broken: {CHAIN}: entry 2 (federation.changed" in broken.stderr


class TestReading:
    def test_an_answer_can_be_checked_with_nothing_else(self, service: Service) -> None:
        bank = service.new_organization("Bank")
        found = entries(bank.owner, f"/v1/organizations/{bank.id}/audit")
        last = "0" * 64
        for number, entry in enumerate(found, start=1):
            shown = {name: value for name, value in entry.items() if name != "hash"}
            told = json.dumps(shown, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
            assert (entry["number"], entry["previous_hash"]) == (number, last)
            assert entry["hash"] == hashlib.sha256(told).hexdigest()
            last = entry["hash"]
        assert actions(found) == ["organization.created", *["api_key.created"] * 3]
        assert f"{bank.id}: 4 entries, {last}" in verified()

    def test_owners_and_admins_read_it_and_nobody_else(self, service: Service) -> None:
        bank, clinic = service.new_organization("Bank"), service.new_organization("Clinic")
        path = f"/v1/organizations/{bank.id}/audit"
        assert entries(bank.owner, path) == entries(service.admin, path)
        problem(bank.operator.get(path), 403, "role_too_small")
        problem(bank.viewer.get(path), 403, "role_too_small")
        problem(clinic.owner.get(path), 404, "not_found")
        problem(bank.owner.get("/v1/audit"), 403, "role_too_small")
        problem(service.admin.get("/v1/organizations/org_none/audit"), 404, "not_found")

    def test_pages_follow_each_other(self, service: Service) -> None:
        bank = service.new_organization("Bank")
        path = f"/v1/organizations/{bank.id}/audit"

        def pages() -> Iterator[list[str]]:
            cursor: str | None = ""
            while cursor is not None:
                page = bank.owner.get(path, params={"limit": 3, **({"cursor": cursor} if cursor else {})}).json()
                yield actions(page["items"])
                cursor = page["next_cursor"]

        first, second = pages()
        assert (len(first), first + second) == (3, actions(entries(bank.owner, path)))

    def test_it_is_filtered_by_action_and_time(self, service: Service) -> None:
        bank = service.new_organization("Bank")
        path = f"/v1/organizations/{bank.id}/audit"
        everything = entries(bank.owner, path)
        assert entries(bank.owner, path, action="api_key.created") == everything[1:]
        assert entries(bank.owner, path, since=everything[2]["at"]) == everything[2:]
        assert entries(bank.owner, path, since="2999-01-01T00:00:00+02:00") == []

    @pytest.mark.parametrize(
        ("query", "pointer"),
        [
            ({"action": "federation.admired"}, "#query/action"),
            ({"since": "2026-01-01T00:00:00"}, "#query/since"),
            ({"since": "0001-01-01T00:00:00+09:00"}, "#query/since"),
        ],
    )
    def test_a_filter_that_is_none_is_refused_by_name(
        self, service: Service, query: dict[str, str], pointer: str
    ) -> None:
        found = problem(service.admin.get("/v1/audit", params=query), 422, "request_invalid")
        assert [error["pointer"] for error in found["errors"]] == [pointer]
