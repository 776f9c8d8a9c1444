"""The processes behind the web say that they are alive, in rows; readiness names what is stale."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Literal

import structlog
from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from coordinator.db.sessions import utcnow, writing
from coordinator.models import Process
from coordinator.settings import get_settings

Role = Literal["background", "beat"]
ROLES: tuple[Role, ...] = ("background", "beat")
_FORGOTTEN_SECONDS = 24 * 3600.0
_log = structlog.get_logger(__name__)


def renew(session: Session, name: str, role: Role, now: datetime) -> None:
    """The process `name` is alive. Rows of processes long gone are deleted."""
    session.execute(delete(Process).where(Process.renewed_at < now - timedelta(seconds=_FORGOTTEN_SECONDS)))
    row = session.get(Process, name)
    if row is None:
        row = Process(name=name, role=role, renewed_at=now)
        session.add(row)
    row.renewed_at = now


def delete_all() -> None:
    """For an installation that just starts: whoever stands in a row is of its earlier life."""
    with writing() as session:
        session.execute(delete(Process))


def stale_roles(session: Session, now: datetime) -> list[Role]:
    """The roles in which no process was heard within `process_stale_seconds`."""
    since = now - timedelta(seconds=get_settings().process_stale_seconds)
    heard = set(session.scalars(select(Process.role).where(Process.renewed_at >= since)))
    return [role for role in ROLES if role not in heard]


@contextmanager
def heartbeat(role: Role) -> Iterator[None]:
    """Renews this process's row from a thread until the block ends, and then takes it away."""
    name = f"{role}@{socket.gethostname()}:{os.getpid()}"
    ended = threading.Event()
    thread = threading.Thread(target=_renew_until, args=(ended, name, role), name="renew-process", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with writing() as session:
            session.execute(delete(Process).where(Process.name == name))


def _renew_until(ended: threading.Event, name: str, role: Role) -> None:
    while not ended.is_set():
        try:
            with writing() as session:
                renew(session, name, role, utcnow())
        except SQLAlchemyError as error:
            _log.warning("process_not_renewed", name=name, reason=type(error).__name__)
        ended.wait(get_settings().process_renew_seconds)
