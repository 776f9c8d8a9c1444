"""Ownership of a coordinator's files: data folder, SQLite, store and signing key belong to its own user alone."""

from pathlib import Path

from sqlalchemy import make_url

from coordinator.settings import get_settings
from federated.private_files import check_private, keep_private, own_folder

DATA_ENTRIES = ("artifacts", "cache", "conductor", "queue", "signing-key.pem", "pids.json", "lock", "migrating")
_SQLITE_SUFFIXES = ("", "-wal", "-shm")


def secure_files() -> None:
    """Makes new files private and checks the existing ones. A process that writes calls it at its start.

    Raises NotPrivate for files that another user owns or can access.
    """
    keep_private()
    settings = get_settings()
    own_folder(settings.data_folder.resolve(), DATA_ENTRIES)
    check_private(_database_files(settings.database))
    if settings.store_folder is not None:
        check_private([settings.store_folder])


def _database_files(url: str) -> list[Path]:
    address = make_url(url)
    if address.get_backend_name() != "sqlite" or not address.database:
        return []
    return [Path(f"{address.database}{suffix}") for suffix in _SQLITE_SUFFIXES]
