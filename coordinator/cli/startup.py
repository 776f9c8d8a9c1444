"""Startup of the coordinator's processes: one installation per folder, migrations first, rare garbage collection."""

import fcntl
import gc
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
import typer

from coordinator.settings import get_settings

MIGRATING = "migrating"
_COLLECT_AFTER = (1_000, 5, 1_000)


@contextmanager
def only_installation(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, since two installations in one folder would take each other's messages."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            typer.echo(f"Another `coordinator up` runs in {folder}.", err=True)
            raise typer.Exit(1) from None
        yield


@contextmanager
def migration_in_background(folder: Path, embedded: bool) -> Iterator[list[Exception]]:
    """Migrates while the processes start; they wait for it before they serve. Yields the errors of the migration."""
    from coordinator.db import migration
    from coordinator.operations import heartbeats

    errors: list[Exception] = []
    with (folder / MIGRATING).open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)

        def migrate_and_unlock() -> None:
            try:
                if embedded:
                    migration.upgrade()
                    heartbeats.delete_all()
                fcntl.flock(gate, fcntl.LOCK_UN)
            except Exception as error:
                structlog.get_logger(__name__).exception("migration_failed")
                errors.append(error)
                os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=migrate_and_unlock, name="migrate")
        thread.start()
        yield errors
        thread.join()


def wait_for_migration() -> None:
    """Waits until this installation's `migration_in_background` is done, if there is one."""
    settings = get_settings()
    if not settings.embedded:
        return
    with (settings.data_folder / MIGRATING).open("a") as gate:
        fcntl.flock(gate, fcntl.LOCK_SH)


def collect_garbage_rarely() -> None:
    """Makes Python's garbage collector run rarely, and never over the objects that exist at the start.

    A full collection took 0.3 to 0.4 s in a web process with a thousand agents and blocked all requests. A collection
    of a hundred thousand young objects took 0.1 s. Objects of the start live as long as the process, and reference
    counting frees most of the later ones.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
