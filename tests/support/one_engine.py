"""One engine for all databases of a test process, so that a statement is compiled once and not for each test."""

from typing import Any
from weakref import WeakSet

from pydantic import ValidationError
from sqlalchemy import URL, Engine, event, make_url
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from coordinator.settings import Settings, get_settings

_DATABASE = "fedloom_tests_database"
_following: WeakSet[Engine] = WeakSet()


def exchanged(engine: Engine) -> bool:
    """Whether the engine serves, from its next connection on, the database that the settings name now.

    It does if that one differs from its own by its name alone.
    """
    try:
        settings = Settings()
    except ValidationError:
        return False
    pool = engine.pool
    if not isinstance(pool, QueuePool) or pool.size() != settings.web_threads:
        return False
    if _server(make_url(settings.database)) != _server(engine.url):
        return False
    if engine not in _following:
        _following.add(engine)
        event.listen(engine, "do_connect", _connect)
        event.listen(engine, "checkin", _close_late_one)
    engine.dispose()
    return True


def _server(url: URL) -> URL:
    return url.set(database=None)


def _connect(dialect: Any, record: ConnectionPoolEntry, arguments: list[Any], options: dict[str, Any]) -> Any:
    record.info[_DATABASE] = get_settings().database
    now, more = dialect.create_connect_args(make_url(get_settings().database))
    return dialect.connect(*now, **{**options, **more})


def _close_late_one(connection: object, record: ConnectionPoolEntry) -> None:
    """Of a session that began before the exchange: nobody will look into its pool again."""
    if record.info.get(_DATABASE) != get_settings().database:
        record.close()
