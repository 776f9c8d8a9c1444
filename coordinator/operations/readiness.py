"""Readiness checks of the installation's parts: database, migrations, store, broker, background and beat."""

from collections.abc import Callable

import structlog
from sqlalchemy import inspect, text

from coordinator.artifacts.store import objects
from coordinator.db import migration
from coordinator.db.sessions import reading, utcnow
from coordinator.operations import heartbeats
from coordinator.queue import wakeups
from coordinator.settings import get_settings

_log = structlog.get_logger(__name__)

OK = "ok"
_BROKER_SECONDS = 5


def checks() -> dict[str, str]:
    """Name of a part -> "ok", or a description of the fault."""
    outcomes = {
        "database": _outcome("database", _check_database),
        "migrations": _outcome("migrations", _check_migrations),
        "store": _outcome("store", _check_store),
        "broker": _outcome("broker", _check_broker),
    }
    try:
        with reading() as session:
            stale = heartbeats.stale_roles(session, utcnow())
    except Exception:  # the database or its tables are missing, as reported above
        return {**outcomes, **dict.fromkeys(heartbeats.ROLES, "unknown without the database")}
    return {**outcomes, **{role: "no recent heartbeat" if role in stale else OK for role in heartbeats.ROLES}}


def _outcome(name: str, check: Callable[[], None]) -> str:
    try:
        check()
    except Exception as error:  # whatever a library raises, the part is not ready
        _log.warning("not_ready", check=name, reason=repr(error))
        return str(error) if isinstance(error, _NotReady) else f"does not answer ({type(error).__name__})"
    return OK


class _NotReady(Exception):
    """A failed check whose text may be shown to any caller."""


def _check_database() -> None:
    with reading() as session:
        session.execute(text("SELECT 1"))


def _check_migrations() -> None:
    with reading() as session:
        at_head = inspect(session.connection()).has_table("alembic_version") and migration.at_head(session)
    if not at_head:
        raise _NotReady("not at this version's: run `coordinator migrate`")


def _check_store() -> None:
    if objects.check() < get_settings().chunk_bytes:
        raise _NotReady("has no room for another chunk")


def _check_broker() -> None:
    with wakeups.celery.connection_for_write(connect_timeout=_BROKER_SECONDS) as connection:
        connection.ensure_connection(max_retries=1, timeout=_BROKER_SECONDS)
