"""Database sessions and transactions; no other module commits.

A reading session sees one snapshot. On PostgreSQL a writing session sees what was committed before each of its
statements, so code that changes a row depending on its present values loads the row with `lock_row`. On SQLite there
is one writer at a time. A session takes its connection at its first statement, so that no request holds the write
lock while it waits for a thread.
"""

import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Annotated, Any, TypeVar

from anyio import CancelScope, CapacityLimiter, to_thread
from fastapi import Depends
from fastapi.requests import HTTPConnection
from sqlalchemy import ARRAY, Connection, Engine, Executable, String, bindparam, event, func, inspect, select
from sqlalchemy.orm import Session, sessionmaker

from coordinator.db.engines import BEGIN_IMMEDIATELY, make_engine, retire
from coordinator.models import Base
from coordinator.settings import get_settings

_BEFORE_COMMIT = "fedloom_before_commit"
_LAST = "fedloom_last_before_commit"
_AFTER_COMMIT = "fedloom_after_commit"
_engines_lock = threading.Lock()
# In the order of the names, everywhere: two different orders would deadlock.
_LOCK_NAMES = select(
    func.pg_advisory_xact_lock(
        func.hashtextextended(func.unnest(bindparam("names", type_=ARRAY(String))).column_valued("name"), 0)
    )
)

Row = TypeVar("Row", bound=Base)
Result = TypeVar("Result")


def utcnow() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Engines:
    engine: Engine
    readers: sessionmaker[Session]
    autocommit: Engine
    writers: sessionmaker[Session]


@lru_cache(maxsize=1)
def _open() -> _Engines:
    engine = make_engine(get_settings().database, threads=get_settings().web_threads)
    readers = sessionmaker(_snapshot_engine(engine), expire_on_commit=False)
    writers = sessionmaker(engine.execution_options(**BEGIN_IMMEDIATELY), expire_on_commit=False)
    event.listen(readers, "before_flush", _refuse_flush)
    autocommit = _autocommit_engine(engine)
    event.listen(autocommit, "before_execute", _refuse_all_but_select)
    return _Engines(engine, readers, autocommit, writers)


def _snapshot_engine(engine: Engine) -> Engine:
    if engine.dialect.name == "sqlite":  # a transaction sees one snapshot in any case
        return engine
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def _autocommit_engine(engine: Engine) -> Engine:
    if engine.dialect.name == "sqlite":  # BEGIN costs nothing there
        return engine.execution_options()
    return engine.execution_options(isolation_level="AUTOCOMMIT", postgresql_readonly=True)


def _engines() -> _Engines:
    """The engines of this process, created at first use: never before a fork, and once for all threads."""
    with _engines_lock:
        return _open()


def engine() -> Engine:
    """The engine of this process."""
    return _engines().engine


def _refuse_flush(session: Session, context: object, instances: object) -> None:
    if session.new or session.dirty or session.deleted:
        raise RuntimeError("a reading session cannot write")


def _refuse_all_but_select(connection: Connection, statement: Executable, *_: object) -> None:
    if not statement.is_select:  # no transaction would commit a change, or roll it back
        raise RuntimeError(f"{type(statement).__name__} on an autocommit connection: it takes SELECT statements only")


@contextmanager
def reading() -> Iterator[Session]:
    """A session that sees one snapshot of the database and cannot write."""
    with _engines().readers() as session:
        yield session


@contextmanager
def autocommit_reads() -> Iterator[Connection]:
    """A connection for one SELECT without BEGIN and COMMIT; a single statement sees one snapshot in any case.

    For frequent statements that return columns: a session would cost more than the statement.
    """
    with _engines().autocommit.connect() as connection:
        yield connection


def listen(channel: str) -> Any | None:
    """A psycopg connection subscribed to `channel`; the caller closes it.

    None on SQLite, which has no notifications.
    """
    if engine().dialect.name != "postgresql":
        return None
    proxy = engine().raw_connection()
    connection: Any = proxy.dbapi_connection
    proxy.detach()
    try:
        connection.autocommit = True
        connection.execute(f"LISTEN {channel}")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def writing() -> Iterator[Session]:
    """A session that commits at the end of the block and rolls back on an error.

    Actions registered with `after_commit` run afterwards. SQLite has one writer at a time: no slow work inside.
    """
    with _engines().writers() as session:
        yield session
        for action in (*session.info.pop(_BEFORE_COMMIT, ()), *session.info.pop(_LAST, ())):
            action()
        session.commit()
        for action in session.info.pop(_AFTER_COMMIT, ()):
            action()


def before_commit(session: Session, action: Callable[[], None], *, last: bool = False) -> None:
    """Runs `action` at the end of the session's transaction, in order of registration; with `last` after all others.

    Locks that actions take come after all row locks and in the same order everywhere, which rules out deadlocks.
    """
    session.info.setdefault(_LAST if last else _BEFORE_COMMIT, []).append(action)


def after_commit(session: Session, action: Callable[[], None]) -> None:
    """Runs `action` after the session's commit, in order of registration; never without a commit."""
    session.info.setdefault(_AFTER_COMMIT, []).append(action)


def lock_row(session: Session, model: type[Row], key: str) -> Row | None:
    """The current row with this primary key, locked until the commit.

    SQLite has no row locks and needs none: there is one writing session at a time.
    """
    (column,) = inspect(model).primary_key
    # FOR NO KEY UPDATE: others may insert rows that refer to this one meanwhile, for no primary key ever changes.
    statement = select(model).where(column == key).with_for_update(key_share=True)
    return session.scalars(statement.execution_options(populate_existing=True)).one_or_none()


def lock_names(session: Session, names: Collection[str]) -> None:
    """Takes an advisory lock on each name, in order, and holds them until the commit.

    SQLite has no such locks and needs none: there is one writing session at a time.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(_LOCK_NAMES, {"names": sorted(names)})


def dispose() -> None:
    """Closes the engine; the next use creates one from the settings of that time.

    A session that is still open in some thread closes its connection when it ends.
    """
    _drop(retire)


def forget_inherited() -> None:
    """Drops the parent's connections without closing them; a forked child calls this first."""
    _drop(partial(Engine.dispose, close=False))


def _drop(dispose_of: Callable[[Engine], None]) -> None:
    with _engines_lock:
        if _open.cache_info().currsize:
            dispose_of(_open().engine)
        _open.cache_clear()


async def run_in_own_thread(call: Callable[[], Result]) -> Result:
    """Runs `call` in a thread outside the pool.

    An open transaction must be ended this way: all threads of the pool may be waiting for that very transaction.
    """
    with CancelScope(shield=True):
        result = await to_thread.run_sync(call, limiter=CapacityLimiter(1))
    return result  # noqa: RET504 - mypy: a scope may end its block early


_Dependency = Callable[[HTTPConnection], AsyncIterator[Session]]


def _session(open_session: Callable[[], AbstractContextManager[Session]]) -> _Dependency:
    async def dependency(connection: HTTPConnection) -> AsyncIterator[Session]:
        manager = open_session()
        connection.state.session = session = manager.__enter__()  # no statement is sent yet
        try:
            yield session
        except BaseException as error:
            await run_in_own_thread(partial(manager.__exit__, type(error), error, error.__traceback__))
            raise
        await run_in_own_thread(partial(manager.__exit__, None, None, None))

    return dependency


def session_of(connection: HTTPConnection) -> Session | None:
    """The session of the request's endpoint, if it has one."""
    session: Session | None = getattr(connection.state, "session", None)
    return session


# scope="function": the commit precedes the response. With FastAPI's default a failed commit would be a 200.
ReadSession = Annotated[Session, Depends(_session(reading), scope="function")]
WriteSession = Annotated[Session, Depends(_session(writing), scope="function")]
