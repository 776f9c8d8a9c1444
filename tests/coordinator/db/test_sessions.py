"""Database sessions: commits, read-only sessions, and no lost updates."""

import ast
import multiprocessing
import os
import threading
from pathlib import Path

import pytest
from fastapi import FastAPI
from sqlalchemy import Executable, delete, func, insert, select, text, update
from sqlalchemy.orm import Session

import coordinator
from coordinator.db import sessions
from coordinator.db.sessions import (
    ReadSession,
    WriteSession,
    after_commit,
    autocommit_reads,
    lock_row,
    reading,
    utcnow,
    writing,
)
from coordinator.models import Organization
from coordinator.models.base import new_id
from tests.support.service import forget_settings, serving

INCREMENTS = 300
PROCESSES = 4


def organization(name: str = "Bank") -> Organization:
    return Organization(id=new_id("org"), name=name, created_at=utcnow())


def names() -> list[str]:
    with reading() as session:
        return [row.name for row in session.query(Organization).order_by(Organization.name)]


def break_at_commit(session: Session) -> None:
    """Something that the database refuses with the commit, and not before."""
    if session.get_bind().dialect.name == "sqlite":
        session.execute(text("PRAGMA defer_foreign_keys=ON"))
        session.execute(text("INSERT INTO holds (digest, holder, part) VALUES ('nothing', 'h', 'p')"))
    else:
        session.execute(text("CREATE TABLE once (number integer UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
        session.execute(text("INSERT INTO once VALUES (1), (1)"))


def count_up(data_folder: str, key: str) -> None:
    os.environ["FEDLOOM_DATA_FOLDER"] = data_folder
    forget_settings()
    for _ in range(INCREMENTS):
        with writing() as session:
            row = lock_row(session, Organization, key)
            assert row is not None
            row.name = str(int(row.name) + 1)
    sessions.dispose()


class TestWriting:
    def test_four_processes_lose_no_update(self, data_folder: Path) -> None:
        counter = organization("0")
        with writing() as session:
            session.add(counter)
        spawn = multiprocessing.get_context("spawn")
        processes = [spawn.Process(target=count_up, args=(str(data_folder), counter.id)) for _ in range(PROCESSES)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * PROCESSES
        assert names() == [str(INCREMENTS * PROCESSES)]

    def test_an_error_leaves_nothing(self, data_folder: Path) -> None:
        done: list[str] = []

        def fail() -> None:
            with writing() as session:
                session.add(organization())
                session.flush()
                after_commit(session, lambda: done.append("after"))
                raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            fail()
        assert names() == []
        assert done == []

    def test_what_waits_for_the_commit_sees_it(self, data_folder: Path) -> None:
        seen: list[list[str]] = []
        with writing() as session:
            after_commit(session, lambda: seen.append(names()))
            session.add(organization())
            assert seen == []
        assert seen == [["Bank"]]

    def test_a_second_writer_waits_for_the_first(self, data_folder: Path) -> None:
        begun, order = threading.Event(), []

        def second() -> None:
            begun.set()
            with writing() as session:
                session.add(organization("second"))
                session.flush()
                order.append("second")

        with writing() as session:
            session.add(organization("first"))
            session.flush()
            thread = threading.Thread(target=second)
            thread.start()
            begun.wait()
            order.append("first")
        thread.join()
        assert order == ["first", "second"]
        assert names() == ["first", "second"]

    def test_a_session_takes_no_lock_before_its_first_statement(self, data_folder: Path) -> None:
        with writing() as idle, writing() as busy:
            busy.add(organization())
            busy.flush()
            assert not idle.in_transaction()


class TestDispose:
    def test_whoever_is_at_work_meanwhile_ends_as_always_and_leaves_nothing_open(self, data_folder: Path) -> None:
        with writing() as late:
            late.add(organization("late"))
            late.flush()
            connection = late.connection().connection.dbapi_connection
            sessions.dispose()
        with pytest.raises(sessions.engine().dialect.loaded_dbapi.Error, match="closed"):
            connection.execute("SELECT 1")
        assert names() == ["late"]

    def test_a_session_that_begins_then_with_what_was_forgotten_leaves_nothing_open_either(
        self, data_folder: Path
    ) -> None:
        forgotten = sessions.engine()
        sessions.dispose()
        with Session(forgotten) as late:
            connection = late.connection().connection.dbapi_connection
        with pytest.raises(sessions.engine().dialect.loaded_dbapi.Error, match="closed"):
            connection.execute("SELECT 1")


class TestReading:
    def test_a_reader_is_not_kept_waiting_and_sees_one_state(self, data_folder: Path) -> None:
        with reading() as session:
            assert session.query(Organization).count() == 0
            with writing() as other:
                other.add(organization())
            assert session.query(Organization).count() == 0
        assert names() == ["Bank"]

    def test_it_cannot_write(self, data_folder: Path) -> None:
        with reading() as session:
            session.add(organization())
            with pytest.raises(RuntimeError, match="cannot write"):
                session.flush()
        assert names() == []


class TestAsking:
    COUNT = select(func.count()).select_from(Organization)

    def test_each_statement_sees_what_is_committed_by_then(self, data_folder: Path) -> None:
        with autocommit_reads() as connection:
            assert connection.scalar(self.COUNT) == 0
        with writing() as session:
            session.add(organization())
        with autocommit_reads() as connection:
            assert connection.scalar(select(Organization.name)) == "Bank"

    @pytest.mark.engines
    def test_on_postgresql_no_transaction_is_left_open(self, data_folder: Path) -> None:
        """Two statements would see one state if there were one."""
        with autocommit_reads() as connection:
            assert connection.scalar(self.COUNT) == 0
            with writing() as other:
                other.add(organization())
            assert connection.scalar(self.COUNT) == 1

    @pytest.mark.parametrize(
        "statement",
        [
            insert(Organization).values(id="a", name="Bank"),
            update(Organization).values(name="Other"),
            delete(Organization),
            text("DELETE FROM organizations"),
        ],
        ids=["insert", "update", "delete", "text"],
    )
    def test_nothing_is_changed_by_a_question(self, data_folder: Path, statement: Executable) -> None:
        with writing() as session:
            session.add(organization())
        with autocommit_reads() as connection, pytest.raises(RuntimeError, match="it takes SELECT statements only"):
            connection.execute(statement)
        with reading() as session:
            assert session.scalars(select(Organization.name)).all() == ["Bank"]


class TestLockRow:
    def test_it_gives_the_row_as_it_is_now(self, data_folder: Path) -> None:
        row = organization()
        with writing() as session:
            session.add(row)
        with writing() as session:
            kept = session.get_one(Organization, row.id)
            session.execute(text("UPDATE organizations SET name = 'Other'"))
            assert kept.name == "Bank"
            assert lock_row(session, Organization, row.id) is kept
            assert kept.name == "Other"

    def test_there_may_be_none(self, data_folder: Path) -> None:
        with writing() as session:
            assert lock_row(session, Organization, "org_unknown") is None


class TestDependencies:
    def test_the_commit_comes_before_the_answer(self, data_folder: Path) -> None:
        app = FastAPI()

        @app.post("/organizations/{name}")
        def make(name: str, session: WriteSession) -> str:
            session.add(organization(name))
            session.flush()
            break_at_commit(session)
            return name

        with serving(app) as service:
            assert service.anonymous.post("/organizations/nothing").status_code == 500
            # SQLite keeps a transaction whose COMMIT failed: the same connection, lent again, must be without it.
            assert names() == []

    def test_many_requests_at_once_neither_block_each_other_nor_get_lost(self, data_folder: Path) -> None:
        app = FastAPI()

        @app.post("/organizations/{name}")
        def make(name: str, session: WriteSession, other: ReadSession) -> int:
            found = other.query(Organization).count()
            session.add(organization(name))
            return found

        with serving(app) as service:
            threads = [
                threading.Thread(target=service.anonymous.post, args=(f"/organizations/{n:03}",)) for n in range(120)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert names() == sorted(f"{n:03}" for n in range(120))


def test_there_is_one_commit_in_the_code() -> None:
    ends = {"commit", "begin", "begin_nested"}
    files = {path: path.read_text(encoding="utf-8") for path in Path(coordinator.__file__).parent.rglob("*.py")}
    found = [
        (path.name, node.attr)
        for path, source in files.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and node.attr in ends
    ]
    assert found == [("sessions.py", "commit")]
