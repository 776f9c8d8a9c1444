"""What a coordinator keeps on this machine is its own user's alone: data folder, SQLite, store, signing key."""

from pathlib import Path

from sqlalchemy import make_url

from coordinator.settings import get_settings
from federated.private_files import check_private, keep_private, own_folder

KEPT = ("artifacts", "cache", "conductor", "queue", "signing-key.pem", "pids.json", "lock", "migrating")
_BESIDE_SQLITE = ("", "-wal", "-shm")


def settle() -> None:
    """At the start of a process that writes: files are made private, and those that are not are refused.

    Raises NotPrivate.
    """
    keep_private()
    settings = get_settings()
    own_folder(settings.data_folder.resolve(), KEPT)
    check_private(_database_files(settings.database))
    if settings.store_folder is not None:
        check_private([settings.store_folder])


def _database_files(url: str) -> list[Path]:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return []
    return [Path(f"{parsed.database}{beside}") for beside in _BESIDE_SQLITE]
