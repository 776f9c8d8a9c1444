"""The bytes: objects `sha256/<hex>` that never change, and the chunks of unfinished uploads.

An object appears whole or not at all. In a folder store it is synced to disk before anybody hears of it.
"""

import hashlib
import io
import math
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from coordinator.artifacts.store import local_files
from coordinator.errors import out_of_service
from coordinator.settings import get_settings
from federated.payloads.header import MAX_HEADER_BYTES, Header, parse_header

READ_BYTES = 1024**2
_DIGESTS = "sha256/"
_PREFIX_BYTES = 8
# No bound for a whole transfer, which may be large; one for a connection on which nothing moves.
_CLIENT = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "24h"}
_RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes that lie in the store: "sha256:" + hex, and how many."""

    digest: str
    size_bytes: int


@contextmanager
def translated() -> Iterator[None]:
    """The one place where errors of the store, and of the disk it may lie on, become Unavailable."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (BaseError, OSError) as error:
        _log.warning("store_failed", reason=str(error).partition("\n")[0])
        raise out_of_service("store", error) from error


@lru_cache(maxsize=1)
def opened() -> ObjectStore:
    """The process's store, opened at first use: its threads must not be inherited by a fork."""
    if (at := place()) is None:
        client = {**_CLIENT, "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"}
        return from_url(get_settings().store, client_options=client, retry_config=_RETRIES)
    return LocalStore(str(at), mkdir=True, automatic_cleanup=True)


def place() -> Path | None:
    return get_settings().store_folder


def is_folder() -> bool:
    """Whether the store is a folder on this machine."""
    return place() is not None


def object_key(digest: str) -> str:
    """Where the object lies in the store."""
    return _DIGESTS + digest.removeprefix("sha256:")


@translated()
def size_of(digest: str) -> int | None:
    """Bytes of the object, or None if there is none."""
    try:
        return int(obstore.head(opened(), object_key(digest))["size"])
    except FileNotFoundError:
        return None


@translated()
def put_file(path: Path) -> Stored:
    """Stores the file's bytes under their digest; does nothing more where they lie already."""
    stored = Stored(digest_of(path), path.stat().st_size)
    if size_of(stored.digest) != stored.size_bytes:
        obstore.put(opened(), key := object_key(stored.digest), path)
        sync(key)
    return stored


@translated()
def drop(digest: str) -> None:
    """Deletes the object."""
    delete(object_key(digest))


def delete(key: str) -> None:
    with suppress(FileNotFoundError):
        obstore.delete(opened(), key)


async def read(digest: str, start: int, end: int) -> AsyncIterator[bytes]:
    """The object's bytes from `start` up to, not with, `end`. Raises FileNotFoundError at the first step."""
    with translated():
        if (at := place()) is not None:
            async for piece in local_files.pieces_between(at / object_key(digest), start, end):
                yield piece
            return
        result = await obstore.get_async(opened(), object_key(digest), options={"range": (start, end)})
        async for part in result.stream(min_chunk_size=READ_BYTES):
            yield part


@translated()
def read_header(digest: str) -> Header:
    """The safetensors header of the object. Raises HeaderError, FileNotFoundError."""
    size_bytes = obstore.head(opened(), object_key(digest))["size"]
    if size_bytes < _PREFIX_BYTES:
        return parse_header(io.BytesIO(), size_bytes)
    start = bytes(obstore.get_range(opened(), object_key(digest), start=0, end=_PREFIX_BYTES))
    length = min(int.from_bytes(start, "little"), MAX_HEADER_BYTES, size_bytes - _PREFIX_BYTES)
    if length:
        start = bytes(obstore.get_range(opened(), object_key(digest), start=0, end=_PREFIX_BYTES + length))
    return parse_header(io.BytesIO(start), size_bytes)


@translated()
def local_file(digest: str) -> Path:
    """A file on this machine with the object's bytes; fetched once from a remote store. Raises FileNotFoundError."""
    if (path := local_path(digest)).exists():
        return path
    if is_folder():
        raise FileNotFoundError(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.urandom(8).hex()}")
    with unfinished.open("wb") as file:
        for part in parts_of(object_key(digest)):
            file.write(part)
    return unfinished.replace(path)


def local_path(digest: str) -> Path:
    """Where the object lies on this machine, or a copy of it would."""
    return (place() or get_settings().data_folder.resolve() / "cache") / object_key(digest)


@translated()
def whole_file(digest: str) -> Path | None:
    """As `local_file`, held against the digest; None if the bytes are lost or are others."""
    with suppress(FileNotFoundError):
        if digest_of(path := local_file(digest)) == digest:
            return path
        if not is_folder():  # a copy that was damaged here
            path.unlink(missing_ok=True)
            return path if digest_of(local_file(digest)) == digest else None
    return None


@translated()
def is_whole(digest: str) -> bool:
    """Whether the object itself, not a copy of it, is there with the bytes of its digest."""
    with suppress(FileNotFoundError):
        return digest == "sha256:" + sha256_of(object_key(digest))
    return False


def parts_of(key: str) -> Iterator[bytes]:
    if (at := place()) is not None:
        return local_files.pieces(at / key)
    return iter(obstore.get(opened(), key).stream(min_chunk_size=READ_BYTES))


def sha256_of(key: str) -> str:
    hashed = hashlib.sha256()
    for part in parts_of(key):
        hashed.update(part)
    return hashed.hexdigest()


def digest_of(path: Path) -> str:
    """ "sha256:" + hex digest of a file on this machine."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def old_digests(before: datetime) -> Iterator[str]:
    """Digests of the objects written before that time."""
    for batch in obstore.list(opened(), prefix=_DIGESTS):
        for meta in batch:
            if meta["last_modified"] < before:
                yield "sha256:" + meta["path"].removeprefix(_DIGESTS)


def sweep(before: datetime) -> None:
    """Deletes what processes that died in the middle of a write left in a folder before that time.

    A bucket shows no unfinished object; its own rule for incomplete multipart uploads takes them away.
    """
    if (at := place()) is not None:
        local_files.sweep(at, before)


def check() -> float:
    """Raises unless the store answers; returns the bytes of room in it, so far as that can be known."""
    opened().list_with_delimiter()
    return math.inf if (at := place()) is None else shutil.disk_usage(at).free


def sync(key: str) -> None:
    """Puts the object and its name on disk; a remote store has done so before it answered."""
    if (at := place()) is not None:
        local_files.sync(at / key)
