"""Uploads to a folder store in a single file: chunks are written at their offsets, and the file becomes the object.

Nothing is copied, and the disk writes every byte once. Each complete chunk has a mark, a sparse file of the chunk's
length, which the store lists. Writers hold a shared lock and `finish` holds an exclusive one, so that an object never
changes.
"""

import errno
import fcntl
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from anyio import to_thread

from coordinator.artifacts.store.local_files import PIECE_BYTES, create_with_folder, write_aside


async def receive(whole: Path, offset: int, mark: Path, parts: AsyncIterator[bytes]) -> None:
    """Writes a chunk at `offset`. Creates its mark after all bytes are on disk.

    If the mark exists already, an interrupted transfer changes nothing. Raises BlockingIOError once the file becomes
    an object.
    """
    with _lock(whole, fcntl.LOCK_SH, os.O_CREAT) as descriptor:
        if mark.exists():
            with write_aside(mark) as copy:
                await _receive_at(copy.fileno(), 0, parts)
                await to_thread.run_sync(_copy_to, copy.fileno(), descriptor, offset)
            return
        length = await _receive_at(descriptor, offset, parts)
        # A mark survives a power cut more easily than bytes do, and a wrong mark would cost the whole upload.
        await to_thread.run_sync(os.fdatasync, descriptor)
        with write_aside(mark) as file:
            file.truncate(length)


def finish(whole: Path, target: Path, check: Callable[[str], None], before_each: Callable[[], None]) -> None:
    """Renames the file to `target` after its bytes are on disk, unless `check` raises for its SHA-256.

    The caller must sync the new name. Calls `before_each` before each piece. Raises BlockingIOError while a chunk is
    written, and FileNotFoundError.
    """
    with _lock(whole, fcntl.LOCK_EX) as descriptor, ThreadPoolExecutor(1, "flush") as thread:
        flush = thread.submit(os.fdatasync, descriptor)
        sha256, start = hashlib.sha256(), 0
        while piece := os.pread(descriptor, PIECE_BYTES, start):
            before_each()
            sha256.update(piece)
            start += len(piece)
        flush.result()
        check(sha256.hexdigest())
        os.utime(descriptor)  # its chunks may be old enough for the collector to delete the object
        create_with_folder(target, lambda: whole.rename(target))


async def _receive_at(descriptor: int, offset: int, parts: AsyncIterator[bytes]) -> int:
    start, pending = offset, bytearray()
    async for part in parts:
        pending += part
        if len(pending) >= PIECE_BYTES:
            await to_thread.run_sync(_write_at, descriptor, pending, start)
            start, pending = start + len(pending), bytearray()
    await to_thread.run_sync(_write_at, descriptor, pending, start)
    return start + len(pending) - offset


def _copy_to(source: int, target: int, offset: int) -> None:
    start = 0
    while piece := os.pread(source, PIECE_BYTES, start):
        _write_at(target, bytearray(piece), offset + start)
        start += len(piece)
    os.fdatasync(target)


@contextmanager
def _lock(path: Path, lock: int, flags: int = 0) -> Iterator[int]:
    descriptor = create_with_folder(path, lambda: os.open(path, os.O_RDWR | flags, 0o600))
    try:
        fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
        if not _is_same_file(path, descriptor):  # it became an object between the two calls
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path))
        yield descriptor
    finally:
        os.close(descriptor)


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _write_at(descriptor: int, content: bytearray, start: int) -> None:
    rest = memoryview(content)
    while rest:
        count = os.pwrite(descriptor, rest, start)
        rest, start = rest[count:], start + count
