"""Chunks of unfinished uploads, and their assembly into objects.

In a folder store all chunks of an upload are written to one file (see `single_file_upload`). In a remote store each
chunk is an object until assembly.
"""

import hashlib
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterable

import obstore

from coordinator.artifacts.store import local_files, objects, single_file_upload

_UPLOADS = "uploads/"


class WrongBytes(ValueError):
    """Bytes that differ from the announcement."""


def key(upload_id: str, index: int) -> str:
    """Key of a chunk in the store."""
    return f"{_UPLOADS}{upload_id}/{index:06d}"


def _whole_key(upload_id: str) -> str:
    """Key of the file with all chunks of an upload, in a folder store."""
    return f"{_UPLOADS}{upload_id}.whole"


async def put(upload_id: str, index: int, offset: int, body: AsyncIterator[bytes], size_bytes: int) -> None:
    """Stores the chunk that begins at `offset` of the artifact.

    Raises WrongBytes unless `body` has exactly `size_bytes` bytes. An earlier version of the chunk stays then.
    """

    async def check_size() -> AsyncIterator[bytes]:
        size = 0
        async for part in body:
            size += len(part)
            if size > size_bytes:
                break
            if part:
                yield part
        if size != size_bytes:
            actual = "more" if size > size_bytes else str(size)
            raise WrongBytes(f"chunk {index} must have {size_bytes} bytes, {actual} received")

    with objects.translate_errors():
        if (at := objects.folder()) is None:
            await obstore.put_async(objects.open_store(), key(upload_id, index), check_size())
        else:
            await single_file_upload.receive(
                at / _whole_key(upload_id), offset, at / key(upload_id, index), check_size()
            )


@objects.translate_errors()
def sizes(upload_id: str) -> dict[int, int]:
    """Index -> size in bytes of the stored chunks."""
    batches = obstore.list(objects.open_store(), prefix=f"{_UPLOADS}{upload_id}/")
    return {int(meta["path"].rpartition("/")[2]): meta["size"] for batch in batches for meta in batch}


@objects.translate_errors()
def assemble(upload_id: str, chunks: int, digest: str, before_each: Callable[[], None]) -> None:
    """Assembles the upload's chunks into the object `digest`, reading them once.

    Calls `before_each` before each piece. Raises WrongBytes if the digest differs, FileNotFoundError if a chunk is
    missing.
    """
    if len(sizes(upload_id)) < chunks:
        raise FileNotFoundError(upload_id)
    if (at := objects.folder()) is None:
        keys = [key(upload_id, index) for index in range(chunks)]
        # An exception inside the block leaves no object. No copy of a temporary object: S3 copies at most 5 GB.
        with obstore.open_writer(objects.open_store(), objects.object_key(digest)) as writer:
            _compare(
                _copy(itertools.chain.from_iterable(map(objects.parts_of, keys)), writer.write, before_each), digest
            )
        return
    whole, target = at / _whole_key(upload_id), at / objects.object_key(digest)
    try:
        single_file_upload.finish(whole, target, lambda sha256: _compare(sha256, digest), before_each)
    except FileNotFoundError:  # a process renamed it and died before recording that
        os.utime(target)
        _compare(objects.sha256_of(objects.object_key(digest)), digest)
    except BlockingIOError:  # a client is still sending a chunk again
        with local_files.write_durably(target) as copy:
            _compare(_copy(local_files.pieces(whole), copy.write, before_each), digest)
    objects.sync(objects.object_key(digest))


def _copy(parts: Iterable[bytes], write: Callable[[bytes], object], before_each: Callable[[], None]) -> str:
    """Writes the parts, and returns their SHA-256 in hex."""
    hasher = hashlib.sha256()
    for part in parts:
        before_each()
        hasher.update(part)
        write(part)
    return hasher.hexdigest()


def _compare(sha256: str, digest: str) -> None:
    if digest != "sha256:" + sha256:
        raise WrongBytes(f"the bytes have the digest sha256:{sha256}, but {digest} was announced")


def drop(upload_id: str) -> None:
    """Deletes the upload's chunks."""
    for index in sizes(upload_id):
        objects.delete(key(upload_id, index))
    if objects.is_folder():
        objects.delete(_whole_key(upload_id))
