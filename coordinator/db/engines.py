"""SQLAlchemy engines for SQLite and PostgreSQL.

SQLite: WAL, every commit synced to disk, and `BEGIN IMMEDIATE` for writing sessions. The driver's default begins a
transaction late and loses updates. PostgreSQL: connecting to a silent server times out early, and a connection that
was idle is pinged before use.
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
"""Time limit for connecting to a silent database server, unless its URL has a `connect_timeout`."""
_BEGIN = "fedloom_begin"
BEGIN_IMMEDIATELY = {_BEGIN: "BEGIN IMMEDIATE"}
"""Execution option of an engine whose transactions take the write lock at their start (SQLite)."""
_RETRY_SECONDS = 0.002
_IDLE_SINCE = "fedloom_idle_since"
_PING_AFTER_IDLE_SECONDS = 1.0
_retirees: WeakSet[Engine] = WeakSet()


def make_engine(url: str, threads: int = 1) -> Engine:
    """An engine for `threads` concurrent sessions, with as many overflow connections."""
    if make_url(url).get_backend_name() != "sqlite":
        timeout = {"connect_timeout": CONNECT_SECONDS} if "connect_timeout" not in make_url(url).query else {}
        engine = create_engine(url, pool_size=threads, max_overflow=threads, pool_use_lifo=True, connect_args=timeout)
        _ping_idle(engine)
        _close_after_retirement(engine)
        return engine
    engine = create_engine(
        url,
        pool_size=threads,
        max_overflow=threads,
        pool_timeout=BUSY_SECONDS,
        connect_args={"timeout": BUSY_SECONDS},
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    event.listen(engine, "reset", _end_transaction)
    _close_after_retirement(engine)
    return engine


def retire(engine: Engine) -> None:
    """Closes the engine's connections: idle ones now, the others when their sessions end."""
    _retirees.add(engine)
    engine.dispose()


def _close_after_retirement(engine: Engine) -> None:
    @event.listens_for(engine, "checkin")
    def _close(connection: object, record: ConnectionPoolEntry) -> None:
        if engine in _retirees:  # its pool is not used again
            record.close()


def _ping_idle(engine: Engine) -> None:
    """Pings a connection that was idle before it is used; SQLAlchemy's `pool_pre_ping` pings at every checkout."""

    @event.listens_for(engine, "checkin")
    def _note_time(connection: object, record: ConnectionPoolEntry) -> None:
        record.info[_IDLE_SINCE] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _ping(connection: Any, record: ConnectionPoolEntry, proxy: object) -> None:
        since = record.info.get(_IDLE_SINCE)
        if since is None or time.monotonic() - since < _PING_AFTER_IDLE_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error


def _prepare_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own
    _switch_to_wal(connection)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _switch_to_wal(connection: Any) -> None:
    # When two processes open a new file at once, one may fail with "locked"; busy_timeout does not cover this.
    if not _retry_busy(connection, "PRAGMA journal_mode=WAL"):
        connection.execute("PRAGMA journal_mode=WAL")


def _retry_busy(connection: Any, statement: str) -> bool:
    """Executes `statement`, retrying while the file is locked; False after BUSY_SECONDS."""
    deadline = time.monotonic() + BUSY_SECONDS
    while time.monotonic() < deadline:
        try:
            connection.execute(statement)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            time.sleep(random.uniform(0.5, 1.5) * _RETRY_SECONDS)  # noqa: S311 - no secret
        else:
            return True
    return False


def _begin_sqlite(connection: Connection) -> None:
    begin = connection.get_execution_options().get(_BEGIN)
    if begin is None:
        connection.exec_driver_sql("BEGIN")
        return
    # SQLite's own busy handler sleeps longer each time, up to 100 ms, so the newest writer would go first.
    connection.exec_driver_sql("PRAGMA busy_timeout=0")
    try:
        if not _retry_busy(connection.connection.dbapi_connection, begin):
            connection.exec_driver_sql(begin)  # raises SQLAlchemy's error
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout={1000 * BUSY_SECONDS:.0f}")


def _end_transaction(connection: Any, record: object, state: object) -> None:
    # After a failed COMMIT, SQLite keeps the transaction open, while SQLAlchemy would reuse the connection.
    if connection.in_transaction:
        connection.rollback()
