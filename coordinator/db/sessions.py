"""Sessions. The only place that commits.

A reader sees one state, on PostgreSQL a writer what was committed before each of its statements; so whoever changes a
row by what stands in it takes it with `lock_row`. On SQLite there is one writer at a time. A session takes its
connection with its first statement and not before, so that no request holds the write lock while it waits for a
thread.
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

from coordinator.db.engines import BEGIN_IMMEDIATELY, end, make_engine
from coordinator.models import Base
from coordinator.settings import get_settings

_BEFORE_COMMIT = "fedloom_before_commit"
_LAST = "fedloom_last_before_commit"
_AFTER_COMMIT = "fedloom_after_commit"
_opening = threading.Lock()
# In the order of the names, as everybody does: two orders would lock each other out.
_LOCK_NAMES = select(
    func.pg_advisory_xact_lock(
        func.hashtextextended(func.unnest(bindparam("names", type_=ARRAY(String))).column_valued("name"), 0)
    )
)

Row = TypeVar("Row", bound=Base)
Result = TypeVar("Result")


def utcnow() -> datetime:
    """The time, aware, UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Opened:
    engine: Engine
    readers: sessionmaker[Session]
    asked: Engine
    writers: sessionmaker[Session]


@lru_cache(maxsize=1)
def _open() -> _Opened:
    engine = make_engine(get_settings().database, threads=get_settings().web_threads)
    readers = sessionmaker(_for_reading(engine), expire_on_commit=False)
    writers = sessionmaker(engine.execution_options(**BEGIN_IMMEDIATELY), expire_on_commit=False)
    event.listen(readers, "before_flush", _refuse_to_write)
    asked = _for_asking(engine)
    event.listen(asked, "before_execute", _refuse_all_but_select)
    return _Opened(engine, readers, asked, writers)


def _for_reading(engine: Engine) -> Engine:
    if engine.dialect.name == "sqlite":  # a transaction sees one state by itself
        return engine
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def _for_asking(engine: Engine) -> Engine:
    if engine.dialect.name == "sqlite":  # beginning costs nothing there
        return engine.execution_options()
    return engine.execution_options(isolation_level="AUTOCOMMIT", postgresql_readonly=True)


def _opened() -> _Opened:
    """What this process uses, made at first use: never before a fork, and once however many threads ask."""
    with _opening:
        return _open()


def engine() -> Engine:
    """The process's engine."""
    return _opened().engine


def _refuse_to_write(session: Session, context: object, instances: object) -> None:
    if session.new or session.dirty or session.deleted:
        raise RuntimeError("a reading session cannot write")


def _refuse_all_but_select(connection: Connection, statement: Executable, *_: object) -> None:
    if not statement.is_select:  # there is no transaction that would take a change back, or keep it
        raise RuntimeError(f"{type(statement).__name__} on a connection for a question: it takes a select alone")


@contextmanager
def reading() -> Iterator[Session]:
    """A session that sees one state of the database and changes nothing."""
    with _opened().readers() as session:
        yield session


@contextmanager
def asking() -> Iterator[Connection]:
    """A connection for one statement, which sees one state by itself: no transaction is begun for it and ended.

    For what is asked all the time, and for columns alone: a session would cost more than the statement.
    """
    with _opened().asked.connect() as connection:
        yield connection


def told_of(channel: str) -> Any | None:
    """A connection (psycopg) that hears of `channel`, its caller's to close; None on an engine that tells nothing."""
    if engine().dialect.name != "postgresql":
        return None
    lent = engine().raw_connection()
    connection: Any = lent.dbapi_connection
    lent.detach()
    try:
        connection.autocommit = True
        connection.execute(f"LISTEN {channel}")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def writing() -> Iterator[Session]:
    """A session whose changes are on disk when the block ends; on an error none of them is.

    What `after_commit` collected runs afterwards. One writer at a time on SQLite: no slow work inside.
    """
    with _opened().writers() as session:
        yield session
        for action in (*session.info.pop(_BEFORE_COMMIT, ()), *session.info.pop(_LAST, ())):
            action()
        session.commit()
        for action in session.info.pop(_AFTER_COMMIT, ()):
            action()


def before_commit(session: Session, action: Callable[[], None], *, last: bool = False) -> None:
    """Runs `action` at the end of the session's transaction, in order of registration; `last`: after all others.

    What an action locks is locked after all rows, and in the same order by everybody: nobody waits in a circle.
    """
    session.info.setdefault(_LAST if last else _BEFORE_COMMIT, []).append(action)


def after_commit(session: Session, action: Callable[[], None]) -> None:
    """Runs `action` once the session is committed, in order of registration; not at all if it is not."""
    session.info.setdefault(_AFTER_COMMIT, []).append(action)


def lock_row(session: Session, model: type[Row], key: str) -> Row | None:
    """The row with this primary key as it is now, locked until the commit.

    SQLite has no row locks and needs none: a writing session is alone there.
    """
    (column,) = inspect(model).primary_key
    # Not against rows that merely refer to this one, which others insert meanwhile: no primary key ever changes.
    statement = select(model).where(column == key).with_for_update(key_share=True)
    return session.scalars(statement.execution_options(populate_existing=True)).one_or_none()


def lock_names(session: Session, names: Collection[str]) -> None:
    """Waits until no other writing session holds one of these names, and holds them until the commit.

    SQLite has no such locks and needs none: a writing session is alone there.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(_LOCK_NAMES, {"names": sorted(names)})


def dispose() -> None:
    """Forgets the engine; the next use makes one from the settings as they are then.

    A session that is still open, in a thread that nobody waits for, closes its connection when it ends.
    """
    _forget(end)


def forget_inherited() -> None:
    """In a forked child, first: the parent's connections stay open and are the parent's."""
    _forget(partial(Engine.dispose, close=False))


def _forget(leave: Callable[[Engine], None]) -> None:
    with _opening:
        if _open.cache_info().currsize:
            leave(_open().engine)
        _open.cache_clear()


async def at_once(call: Callable[[], Result]) -> Result:
    """Runs `call` in a thread that it need not wait for.

    Whoever has a transaction open must end it so: all threads of the pool may be waiting for that very transaction.
    """
    with CancelScope(shield=True):
        result = await to_thread.run_sync(call, limiter=CapacityLimiter(1))
    return result  # noqa: RET504 - mypy: a scope may end its block early


_Dependency = Callable[[HTTPConnection], AsyncIterator[Session]]


def _session(opened: Callable[[], AbstractContextManager[Session]]) -> _Dependency:
    async def dependency(connection: HTTPConnection) -> AsyncIterator[Session]:
        manager = opened()
        connection.state.session = session = manager.__enter__()  # nothing is asked of the database yet
        try:
            yield session
        except BaseException as error:
            await at_once(partial(manager.__exit__, type(error), error, error.__traceback__))
            raise
        await at_once(partial(manager.__exit__, None, None, None))

    return dependency


def session_of(connection: HTTPConnection) -> Session | None:
    """The session of the request's endpoint, if it has one."""
    session: Session | None = getattr(connection.state, "session", None)
    return session


# scope="function": the commit comes before the answer. With FastAPI's default a failed commit would be a 200.
ReadSession = Annotated[Session, Depends(_session(reading), scope="function")]
WriteSession = Annotated[Session, Depends(_session(writing), scope="function")]
