"""Heartbeats of background processes and beat: rows that each process renews. Readiness reports stale roles."""

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
_RETENTION_SECONDS = 24 * 3600.0
_log = structlog.get_logger(__name__)


def renew(session: Session, name: str, role: Role, now: datetime) -> None:
    """Records that the process `name` is alive, and deletes the rows of processes long gone."""
    session.execute(delete(Process).where(Process.renewed_at < now - timedelta(seconds=_RETENTION_SECONDS)))
    row = session.get(Process, name)
    if row is None:
        row = Process(name=name, role=role, renewed_at=now)
        session.add(row)
    row.renewed_at = now


def delete_all() -> None:
    """Deletes all rows. For an installation that starts: they are those of its previous run."""
    with writing() as session:
        session.execute(delete(Process))


def stale_roles(session: Session, now: datetime) -> list[Role]:
    """The roles without a heartbeat within `process_stale_seconds`."""
    since = now - timedelta(seconds=get_settings().process_stale_seconds)
    alive = set(session.scalars(select(Process.role).where(Process.renewed_at >= since)))
    return [role for role in ROLES if role not in alive]


@contextmanager
def heartbeat(role: Role) -> Iterator[None]:
    """Renews this process's row from a thread until the block ends, then deletes it."""
    name = f"{role}@{socket.gethostname()}:{os.getpid()}"
    stop = threading.Event()
    thread = threading.Thread(target=_renew_until, args=(stop, name, role), name="renew-process", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with writing() as session:
            session.execute(delete(Process).where(Process.name == name))


def _renew_until(stop: threading.Event, name: str, role: Role) -> None:
    while not stop.is_set():
        try:
            with writing() as session:
                renew(session, name, role, utcnow())
        except SQLAlchemyError as error:
            _log.warning("process_not_renewed", name=name, reason=type(error).__name__)
        stop.wait(get_settings().process_renew_seconds)
