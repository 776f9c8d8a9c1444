"""The bytes: objects `sha256/<hex>` that never change, and the chunks of unfinished uploads.

An object appears whole or not at all. In a folder store it is synced to disk before anybody hears of it.
"""

import hashlib
import io
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore
from obstore.store import LocalStore, ObjectStore, from_url

from coordinator.settings import get_settings
from federated.header import MAX_HEADER_BYTES, Header, parse_header

READ_BYTES = 1024**2
_DIGESTS = "sha256/"
_UPLOADS = "uploads/"
_ASSEMBLING = "assembling/"
_PREFIX_BYTES = 8


class WrongBytes(ValueError):
    """Bytes that are not what was announced."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes that lie in the store: "sha256:" + hex, and how many."""

    digest: str
    size_bytes: int


@lru_cache(maxsize=1)
def opened() -> ObjectStore:
    """The process's store, opened at first use: its threads must not be inherited by a fork."""
    folder = _folder()
    if folder is None:
        return from_url(get_settings().store)
    return LocalStore(str(folder), mkdir=True, automatic_cleanup=True)


def _folder() -> Path | None:
    parts = urlsplit(get_settings().store)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _key(digest: str) -> str:
    return _DIGESTS + digest.removeprefix("sha256:")


def _chunk_key(upload_id: str, index: int) -> str:
    return f"{_UPLOADS}{upload_id}/{index:06d}"


def size_of(digest: str) -> int | None:
    """Bytes of the object, or None if there is none."""
    try:
        return int(obstore.head(opened(), _key(digest))["size"])
    except FileNotFoundError:
        return None


def is_stored(digest: str) -> bool:
    """Whether the object is there."""
    return size_of(digest) is not None


def put_file(path: Path) -> Stored:
    """Stores the file's bytes under their digest; does nothing more where they lie already."""
    with path.open("rb") as file:
        digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    size_bytes = path.stat().st_size
    if size_of(digest) != size_bytes:
        obstore.put(opened(), _key(digest), path)
        _sync(_key(digest))
    return Stored(digest, size_bytes)


async def put_chunk(upload_id: str, index: int, body: AsyncIterator[bytes], size_bytes: int) -> None:
    """Stores one chunk. Raises WrongBytes, and stores nothing, unless `body` has exactly `size_bytes`."""

    async def counted() -> AsyncIterator[bytes]:
        received = 0
        async for part in body:
            received += len(part)
            if received > size_bytes:
                break
            if part:
                yield part
        if received != size_bytes:
            found = "more" if received > size_bytes else str(received)
            raise WrongBytes(f"chunk {index} must have {size_bytes} bytes, {found} came")

    await obstore.put_async(opened(), _chunk_key(upload_id, index), counted())


def chunks_present(upload_id: str) -> tuple[int, ...]:
    """Indices of the chunks that lie in the store, ascending."""
    batches = obstore.list(opened(), prefix=f"{_UPLOADS}{upload_id}/")
    return tuple(sorted(int(meta["path"].rpartition("/")[2]) for batch in batches for meta in batch))


def adopt(upload_id: str, digest: str) -> None:
    """Makes the upload's only chunk the object `digest`. Raises WrongBytes if it is not, FileNotFoundError."""
    hashed = hashlib.sha256()
    for part in _parts(_chunk_key(upload_id, 0)):
        hashed.update(part)
    _compare(hashed.hexdigest(), digest)
    obstore.copy(opened(), _chunk_key(upload_id, 0), _key(digest))
    _sync(_key(digest))


def assemble(upload_id: str, chunks: int, digest: str, before_each: Callable[[], None]) -> None:
    """Makes the upload's chunks the object `digest`, read once. Raises WrongBytes if they are not.

    Calls `before_each` before each chunk. Raises FileNotFoundError if one is not there.
    """

    unfinished = f"{_ASSEMBLING}{upload_id}-{os.urandom(8).hex()}"
    hashed = hashlib.sha256()
    with obstore.open_writer(opened(), unfinished) as writer:
        for index in range(chunks):
            before_each()
            for part in _parts(_chunk_key(upload_id, index)):
                hashed.update(part)
                writer.write(part)
    try:
        _compare(hashed.hexdigest(), digest)
    except WrongBytes:
        _delete(unfinished)
        raise
    obstore.rename(opened(), unfinished, _key(digest))
    _sync(_key(digest))


def _compare(found: str, digest: str) -> None:
    if digest != "sha256:" + found:
        raise WrongBytes(f"the bytes have the digest sha256:{found}, announced was {digest}")


def _parts(key: str) -> Iterator[bytes]:
    return iter(obstore.get(opened(), key).stream(min_chunk_size=READ_BYTES))


def drop_chunks(upload_id: str) -> None:
    """Deletes the upload's chunks."""
    for index in chunks_present(upload_id):
        _delete(_chunk_key(upload_id, index))


def drop(digest: str) -> None:
    """Deletes the object."""
    _delete(_key(digest))


def _delete(key: str) -> None:
    with suppress(FileNotFoundError):
        obstore.delete(opened(), key)


async def read(digest: str, start: int, end: int) -> AsyncIterator[bytes]:
    """The object's bytes from `start` up to, not with, `end`. Raises FileNotFoundError at the first step."""
    result = await obstore.get_async(opened(), _key(digest), options={"range": (start, end)})
    async for part in result.stream(min_chunk_size=READ_BYTES):
        yield part


def read_header(digest: str) -> Header:
    """The safetensors header of the object. Raises HeaderError, FileNotFoundError."""
    size_bytes = obstore.head(opened(), _key(digest))["size"]
    if size_bytes < _PREFIX_BYTES:
        return parse_header(io.BytesIO(), size_bytes)
    start = bytes(obstore.get_range(opened(), _key(digest), start=0, end=_PREFIX_BYTES))
    length = min(int.from_bytes(start, "little"), MAX_HEADER_BYTES, size_bytes - _PREFIX_BYTES)
    if length:
        start = bytes(obstore.get_range(opened(), _key(digest), start=0, end=_PREFIX_BYTES + length))
    return parse_header(io.BytesIO(start), size_bytes)


def local_file(digest: str) -> Path:
    """A file on this machine with the object's bytes; fetched once from a remote store.

    Raises FileNotFoundError.
    """
    folder = _folder()
    path = (folder or get_settings().data_folder.resolve() / "cache") / _key(digest)
    if not path.exists():
        if folder is not None:
            raise FileNotFoundError(path)
        _fetch(_key(digest), path)
    return path


def _fetch(key: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.urandom(8).hex()}")
    with unfinished.open("wb") as file:
        for part in _parts(key):
            file.write(part)
    unfinished.replace(path)


def old_digests(before: datetime) -> Iterator[str]:
    """Digests of the objects written before that time."""
    for batch in obstore.list(opened(), prefix=_DIGESTS):
        for meta in batch:
            if meta["last_modified"] < before:
                yield "sha256:" + meta["path"].removeprefix(_DIGESTS)


def sweep(before: datetime) -> None:
    """Deletes what processes that died in the middle of an assembly or a write left before that time."""
    for batch in obstore.list(opened(), prefix=_ASSEMBLING):
        for meta in batch:
            if meta["last_modified"] < before:
                _delete(meta["path"])
    folder = _folder()
    for path in folder.rglob("*#*") if folder is not None else ():  # where obstore writes before it renames
        if path.stat().st_mtime < before.timestamp():
            path.unlink(missing_ok=True)


def check() -> None:
    """Raises unless the store answers."""
    opened().list_with_delimiter()


def _sync(key: str) -> None:
    """Puts the object and its name on disk; a remote store has done so before it answered."""
    folder = _folder()
    if folder is None:
        return
    for path in (folder / key, (folder / key).parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
