"""Start-up of the coordinator's processes: one installation per folder, migrations first, rare garbage collection."""

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
    """Holds the folder's lock: two installations in one folder would take each other's messages."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            typer.echo(f"Another `coordinator up` runs in {folder}.", err=True)
            raise typer.Exit(1) from None
        yield


@contextmanager
def migration_in_background(folder: Path, embedded: bool) -> Iterator[list[Exception]]:
    """Migrates while the processes start, which wait for it before they serve. Yields what went wrong."""
    from coordinator.db import migration
    from coordinator.operations import heartbeats

    failed: list[Exception] = []
    with (folder / MIGRATING).open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)

        def migrate_and_open() -> None:
            try:
                if embedded:
                    migration.upgrade()
                    heartbeats.delete_all()
                fcntl.flock(gate, fcntl.LOCK_UN)
            except Exception as error:
                structlog.get_logger(__name__).exception("migration_failed")
                failed.append(error)
                os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=migrate_and_open, name="migrate")
        thread.start()
        yield failed
        thread.join()


def wait_for_migration() -> None:
    """Waits until `migration_in_background` of this installation is done, where there is one."""
    settings = get_settings()
    if not settings.embedded:
        return
    with (settings.data_folder / MIGRATING).open("a") as gate:
        fcntl.flock(gate, fcntl.LOCK_SH)


def collect_garbage_rarely() -> None:
    """Keeps Python's collector from looking through all objects every few seconds.

    That took 0.3 to 0.4 s in a web process with a thousand agents, in which it answered nobody; a hundred thousand
    young ones took 0.1 s. What is there at the start stays anyway, and most of what is made later goes without it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
