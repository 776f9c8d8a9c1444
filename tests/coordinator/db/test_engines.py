"""Database engines: connection settings, retries on a locked file, and replacement of lost connections."""

import sqlite3
import threading
import time
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError

from coordinator.db import engines
from coordinator.db.sessions import autocommit_reads, engine, reading, writing


@pytest.mark.sqlite
def test_who_waited_for_the_write_lock_waits_as_long_as_before_for_all_else(data_folder: Path) -> None:
    with writing() as session:
        assert session.scalar(text("PRAGMA busy_timeout")) == 1000 * engines.BUSY_SECONDS


@pytest.mark.sqlite
class TestSqlite:
    @pytest.mark.parametrize(
        ("pragma", "value"),
        [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 30000)],
    )
    def test_every_connection_is_prepared(self, data_folder: Path, pragma: str, value: object) -> None:
        for opened in (reading, writing):
            with opened() as session:
                assert session.scalar(text(f"PRAGMA {pragma}")) == value

    def test_it_opens_a_new_file_that_another_process_is_just_preparing(self, tmp_path: Path) -> None:
        other = sqlite3.connect(tmp_path / "new.db", isolation_level=None, check_same_thread=False)
        other.execute("CREATE TABLE organizations (id)")
        other.execute(
            "BEGIN IMMEDIATE"
        )  # in a file without WAL the change to it fails at once, however long it may wait
        end = threading.Timer(0.5, other.execute, ("COMMIT",))
        end.start()
        engine = engines.make_engine(f"sqlite:///{tmp_path}/new.db")
        with engine.connect() as connection:
            assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        end.join()
        engine.dispose()
        other.close()


@pytest.mark.engines
class TestPostgres:
    def test_connections_that_were_ended_while_they_lay_idle_are_replaced(self, data_folder: Path) -> None:
        with autocommit_reads() as one, autocommit_reads() as another:
            pids = {one.scalar(select(func.pg_backend_pid())), another.scalar(select(func.pg_backend_pid()))}
        self.end_all()
        time.sleep(1.1)
        for opened in (autocommit_reads, reading, writing):
            with opened() as session, opened() as beside:
                now = {opened.scalar(select(func.pg_backend_pid())) for opened in (session, beside)}
                assert len(now) == 2
                assert not now & pids

    def test_one_that_was_used_a_moment_ago_is_not_asked_and_its_end_costs_one_session(
        self, data_folder: Path
    ) -> None:
        with autocommit_reads() as session, autocommit_reads() as beside:
            assert session.scalar(select(1)) == beside.scalar(select(1))
        self.end_all()
        with pytest.raises(OperationalError), autocommit_reads() as session:
            session.scalar(select(1))
        with autocommit_reads() as session, autocommit_reads() as beside:
            assert session.scalar(select(1)) == beside.scalar(select(1))

    def end_all(self) -> None:
        url = engine().url.set(drivername="postgresql").render_as_string(hide_password=False)
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"SELECT pg_terminate_backend(pid) {others}")
