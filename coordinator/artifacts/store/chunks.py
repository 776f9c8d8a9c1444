"""Chunks of unfinished uploads, and the objects that they become.

In a folder all chunks of an upload lie in one file (see `growing`); elsewhere each is an object until they are one.
"""

import hashlib
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterable

import obstore

from coordinator.artifacts.store import local_files, objects, single_file_upload

_UPLOADS = "uploads/"


class WrongBytes(ValueError):
    """Bytes that are not what was announced."""


def key(upload_id: str, index: int) -> str:
    """Where a chunk of an upload lies in the store."""
    return f"{_UPLOADS}{upload_id}/{index:06d}"


def _whole_key(upload_id: str) -> str:
    """Where the bytes of all chunks lie in a folder."""
    return f"{_UPLOADS}{upload_id}.whole"


async def put(upload_id: str, index: int, offset: int, body: AsyncIterator[bytes], size_bytes: int) -> None:
    """Stores the chunk that begins at `offset` of the whole.

    Raises WrongBytes unless `body` has exactly `size_bytes`: then the chunk is as it was before, there or not.
    """

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

    with objects.translated():
        if (at := objects.place()) is None:
            await obstore.put_async(objects.opened(), key(upload_id, index), counted())
        else:
            await single_file_upload.receive(
                at / _whole_key(upload_id), offset, at / key(upload_id, index), counted()
            )


@objects.translated()
def sizes(upload_id: str) -> dict[int, int]:
    """Bytes of the chunks that lie in the store, by index."""
    batches = obstore.list(objects.opened(), prefix=f"{_UPLOADS}{upload_id}/")
    return {int(meta["path"].rpartition("/")[2]): meta["size"] for batch in batches for meta in batch}


@objects.translated()
def assemble(upload_id: str, chunks: int, digest: str, before_each: Callable[[], None]) -> None:
    """Makes the upload's chunks the object `digest`, read once. Raises WrongBytes if they are not.

    Calls `before_each` now and then. Raises FileNotFoundError if a chunk is not there.
    """
    if len(sizes(upload_id)) < chunks:
        raise FileNotFoundError(upload_id)
    if (at := objects.place()) is None:
        keys = [key(upload_id, index) for index in range(chunks)]
        # What raises inside the block leaves no object. Not written elsewhere and copied: S3 copies at most 5 GB.
        with obstore.open_writer(objects.opened(), objects.object_key(digest)) as writer:
            _compare(
                _copy(itertools.chain.from_iterable(map(objects.parts_of, keys)), writer.write, before_each), digest
            )
        return
    whole, target = at / _whole_key(upload_id), at / objects.object_key(digest)
    try:
        single_file_upload.become(whole, target, lambda found: _compare(found, digest), before_each)
    except FileNotFoundError:  # it has its name since a process that died before it could say so
        os.utime(target)
        _compare(objects.sha256_of(objects.object_key(digest)), digest)
    except BlockingIOError:  # somebody sends a chunk once more and does not come to an end
        with local_files.durable(target) as copy:
            _compare(_copy(local_files.pieces(whole), copy.write, before_each), digest)
    objects.sync(objects.object_key(digest))


def _copy(parts: Iterable[bytes], write: Callable[[bytes], object], before_each: Callable[[], None]) -> str:
    """The SHA-256 of what was written."""
    hashed = hashlib.sha256()
    for part in parts:
        before_each()
        hashed.update(part)
        write(part)
    return hashed.hexdigest()


def _compare(found: str, digest: str) -> None:
    if digest != "sha256:" + found:
        raise WrongBytes(f"the bytes have the digest sha256:{found}, announced was {digest}")


def drop(upload_id: str) -> None:
    """Deletes the upload's chunks."""
    for index in sizes(upload_id):
        objects.delete(key(upload_id, index))
    if objects.is_folder():
        objects.delete(_whole_key(upload_id))
