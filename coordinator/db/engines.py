"""Connections to the database, as this service needs them.

SQLite: WAL, every commit synced to disk, and `BEGIN IMMEDIATE` for writing sessions; the driver's default begins
a transaction late and loses updates. PostgreSQL: a server that says nothing is given up soon, and a connection that
lay idle is asked whether it still stands.
"""

import random
import sqlite3
import time
from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

BUSY_SECONDS = 30.0
CONNECT_SECONDS = 5
"""How long to wait for a database server that says nothing, unless its URL has a `connect_timeout`."""
_BEGIN = "fedloom_begin"
BEGIN_IMMEDIATELY = {_BEGIN: "BEGIN IMMEDIATE"}
"""Execution option of an engine whose transactions are alone from their start (SQLite)."""
_LOCKED_PAUSE_SECONDS = 0.002
_IDLE_SINCE = "fedloom_idle_since"
_ASKED_AFTER_IDLE_SECONDS = 1.0
_ended: WeakSet[Engine] = WeakSet()


def make_engine(url: str, threads: int = 1) -> Engine:
    """An engine with room for `threads` sessions at once and as many that are just ending."""
    if make_url(url).get_backend_name() != "sqlite":
        within = {"connect_timeout": CONNECT_SECONDS} if "connect_timeout" not in make_url(url).query else {}
        made = create_engine(url, pool_size=threads, max_overflow=threads, pool_use_lifo=True, connect_args=within)
        _ask_the_idle(made)
        _close_late_ones(made)
        return made
    made = create_engine(
        url,
        pool_size=threads,
        max_overflow=threads,
        pool_timeout=BUSY_SECONDS,
        connect_args={"timeout": BUSY_SECONDS},
    )
    event.listen(made, "connect", _prepare_sqlite)
    event.listen(made, "begin", _begin_sqlite)
    event.listen(made, "reset", _end_transaction)
    _close_late_ones(made)
    return made


def end(made: Engine) -> None:
    """Closes its connections: those that lie idle now, the others when their sessions end."""
    _ended.add(made)
    made.dispose()


def _close_late_ones(made: Engine) -> None:
    @event.listens_for(made, "checkin")
    def _close(connection: object, record: ConnectionPoolEntry) -> None:
        if made in _ended:  # nobody will look into its pool again
            record.close()


def _ask_the_idle(made: Engine) -> None:
    """Has a connection that lay idle asked whether it still stands; SQLAlchemy's `pool_pre_ping` asks each time."""

    @event.listens_for(made, "checkin")
    def _lay_down(connection: object, record: ConnectionPoolEntry) -> None:
        record.info[_IDLE_SINCE] = time.monotonic()

    @event.listens_for(made, "checkout")
    def _ask(connection: Any, record: ConnectionPoolEntry, proxy: object) -> None:
        since = record.info.get(_IDLE_SINCE)
        if since is None or time.monotonic() - since < _ASKED_AFTER_IDLE_SECONDS:
            return
        try:
            made.dialect.do_ping(connection)
        except made.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error


def _prepare_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own
    _turn_to_wal(connection)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _turn_to_wal(connection: Any) -> None:
    # Of two that open a new file at once one may be told "locked" at once: SQLite's own waiting does not cover this.
    if not _patiently(connection, "PRAGMA journal_mode=WAL"):
        connection.execute("PRAGMA journal_mode=WAL")


def _patiently(connection: Any, statement: str) -> bool:
    """Executes it as soon as nobody else has the file locked; False if that took too long."""
    give_up = time.monotonic() + BUSY_SECONDS
    while time.monotonic() < give_up:
        try:
            connection.execute(statement)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            time.sleep(random.uniform(0.5, 1.5) * _LOCKED_PAUSE_SECONDS)  # noqa: S311 - no secret
        else:
            return True
    return False


def _begin_sqlite(connection: Connection) -> None:
    begin = connection.get_execution_options().get(_BEGIN)
    if begin is None:
        connection.exec_driver_sql("BEGIN")
        return
    # SQLite's own waiting sleeps longer each time, up to 100 ms: who came last would go first.
    connection.exec_driver_sql("PRAGMA busy_timeout=0")
    try:
        if not _patiently(connection.connection.dbapi_connection, begin):
            connection.exec_driver_sql(begin)  # raises what SQLAlchemy makes of it
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout={1000 * BUSY_SECONDS:.0f}")


def _end_transaction(connection: Any, record: object, state: object) -> None:
    # SQLite keeps a transaction whose COMMIT failed; SQLAlchemy takes it for ended and would lend it to the next.
    if connection.in_transaction:
        connection.rollback()
