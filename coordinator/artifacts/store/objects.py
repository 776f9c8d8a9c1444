"""Object store for artifacts: immutable objects under `sha256/<hex>`, in a folder or a remote store.

An object appears whole or not at all. In a folder store it is synced to disk before it is reported as stored.
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
from federated import atomic_files
from federated.digests import file_digest
from federated.payloads.header import MAX_HEADER_BYTES, Header, parse_header

READ_BYTES = 1024**2
_DIGESTS = "sha256/"
_PREFIX_BYTES = 8
# Large transfers may take long; only an idle connection times out.
_CLIENT = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "24h"}
_RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in the store. `digest`: "sha256:" + hex."""

    digest: str
    size_bytes: int


@contextmanager
def translate_errors() -> Iterator[None]:
    """Translates errors of the store and of its disk to Unavailable, except FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (BaseError, OSError) as error:
        _log.warning("store_failed", reason=str(error).partition("\n")[0])
        raise out_of_service("store", error) from error


@lru_cache(maxsize=1)
def open_store() -> ObjectStore:
    """The process's store, opened on first use, since a fork must not inherit its threads."""
    if (at := folder()) is None:
        client = {**_CLIENT, "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"}
        return from_url(get_settings().store, client_options=client, retry_config=_RETRIES)
    return LocalStore(str(at), mkdir=True, automatic_cleanup=True)


def folder() -> Path | None:
    return get_settings().store_folder


def is_folder() -> bool:
    """True if the store is a folder on this machine."""
    return folder() is not None


def object_key(digest: str) -> str:
    """Key of the object in the store."""
    return _DIGESTS + digest.removeprefix("sha256:")


@translate_errors()
def size_of(digest: str) -> int | None:
    """Size of the object in bytes, or None if there is none."""
    try:
        return int(obstore.head(open_store(), object_key(digest))["size"])
    except FileNotFoundError:
        return None


@translate_errors()
def put_file(path: Path) -> StoredObject:
    """Stores the file's bytes under their digest, unless the store has them already."""
    stored_object = StoredObject(file_digest(path), path.stat().st_size)
    if size_of(stored_object.digest) != stored_object.size_bytes:
        obstore.put(open_store(), key := object_key(stored_object.digest), path)
        sync(key)
    return stored_object


@translate_errors()
def drop(digest: str) -> None:
    """Deletes the object."""
    delete(object_key(digest))


def delete(key: str) -> None:
    with suppress(FileNotFoundError):
        obstore.delete(open_store(), key)


async def read(digest: str, start: int, end: int) -> AsyncIterator[bytes]:
    """The object's bytes from `start` up to `end`, exclusive. Raises FileNotFoundError on the first iteration."""
    with translate_errors():
        if (at := folder()) is not None:
            async for piece in local_files.pieces_between(at / object_key(digest), start, end):
                yield piece
            return
        result = await obstore.get_async(open_store(), object_key(digest), options={"range": (start, end)})
        async for part in result.stream(min_chunk_size=READ_BYTES):
            yield part


@translate_errors()
def read_header(digest: str) -> Header:
    """The safetensors header of the object. Raises HeaderError, FileNotFoundError."""
    size_bytes = obstore.head(open_store(), object_key(digest))["size"]
    if size_bytes < _PREFIX_BYTES:
        return parse_header(io.BytesIO(), size_bytes)
    start = bytes(obstore.get_range(open_store(), object_key(digest), start=0, end=_PREFIX_BYTES))
    length = min(int.from_bytes(start, "little"), MAX_HEADER_BYTES, size_bytes - _PREFIX_BYTES)
    if length:
        start = bytes(obstore.get_range(open_store(), object_key(digest), start=0, end=_PREFIX_BYTES + length))
    return parse_header(io.BytesIO(start), size_bytes)


@translate_errors()
def local_file(digest: str) -> Path:
    """A local file with the object's bytes; downloaded once from a remote store. Raises FileNotFoundError."""
    if (path := local_path(digest)).exists():
        return path
    if is_folder():
        raise FileNotFoundError(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.urandom(8).hex()}")
    with atomic_files.write_aside(aside, path, lambda: aside.open("wb")) as file:
        for part in parts_of(object_key(digest)):
            file.write(part)
    return path


def local_path(digest: str) -> Path:
    """Local path of the object, or of its copy from a remote store."""
    return (folder() or get_settings().data_folder.resolve() / "cache") / object_key(digest)


@translate_errors()
def whole_file(digest: str) -> Path | None:
    """Like `local_file`, but verified against the digest. None if the bytes are lost or damaged."""
    with suppress(FileNotFoundError):
        if file_digest(path := local_file(digest)) == digest:
            return path
        if not is_folder():  # a damaged local copy
            path.unlink(missing_ok=True)
            return path if file_digest(local_file(digest)) == digest else None
    return None


@translate_errors()
def is_whole(digest: str) -> bool:
    """True if the object itself, not a local copy, has the bytes of its digest."""
    with suppress(FileNotFoundError):
        return digest == "sha256:" + sha256_of(object_key(digest))
    return False


def parts_of(key: str) -> Iterator[bytes]:
    if (at := folder()) is not None:
        return local_files.pieces(at / key)
    return iter(obstore.get(open_store(), key).stream(min_chunk_size=READ_BYTES))


def sha256_of(key: str) -> str:
    sha256 = hashlib.sha256()
    for part in parts_of(key):
        sha256.update(part)
    return sha256.hexdigest()


def old_digests(before: datetime) -> Iterator[str]:
    """Digests of the objects written before that time."""
    for batch in obstore.list(open_store(), prefix=_DIGESTS):
        for meta in batch:
            if meta["last_modified"] < before:
                yield "sha256:" + meta["path"].removeprefix(_DIGESTS)


def sweep(before: datetime) -> None:
    """Deletes files that processes left in a folder store when they died during a write before that time.

    A bucket shows no unfinished objects; its lifecycle rule removes incomplete multipart uploads.
    """
    if (at := folder()) is not None:
        local_files.sweep(at, before)


def check() -> float:
    """Free bytes in the store, or infinity for a remote store. Raises if the store does not respond."""
    open_store().list_with_delimiter()
    return math.inf if (at := folder()) is None else shutil.disk_usage(at).free


def sync(key: str) -> None:
    """Syncs the object and its name to disk. A remote store has done so before it responded."""
    if (at := folder()) is not None:
        atomic_files.sync(at / key)
        atomic_files.sync((at / key).parent)
