"""A file of a folder store that grows by chunks, each written at its place, and becomes an object as it is.

Nothing is copied, and the disk writes every byte once. A chunk that is there whole has a file of its own beside, of
its length and without blocks, which the store lists. Who writes holds a shared lock, who makes the object one for
itself: an object never changes.
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

from coordinator.artifacts.store.local_files import PIECE_BYTES, beside, made_beside


async def receive(whole: Path, offset: int, mark: Path, parts: AsyncIterator[bytes]) -> None:
    """Writes what comes in at `offset`; only if it ends well, and is on disk, is there the mark that says so.

    Where the mark is there already, bytes that break off change nothing. Raises BlockingIOError once the file becomes
    an object.
    """
    with _locked(whole, fcntl.LOCK_SH, os.O_CREAT) as descriptor:
        if mark.exists():
            with beside(mark) as again:
                await _receive_at(again.fileno(), 0, parts)
                await to_thread.run_sync(_copy_to, again.fileno(), descriptor, offset)
            return
        length = await _receive_at(descriptor, offset, parts)
        # A mark outlives a power cut more easily than bytes do, and a wrong one would cost the whole upload.
        await to_thread.run_sync(os.fdatasync, descriptor)
        with beside(mark) as file:
            file.truncate(length)


def become(whole: Path, target: Path, check: Callable[[str], None], before_each: Callable[[], None]) -> None:
    """Gives the file its name, on disk but for that name, if `check` does not raise for its SHA-256.

    Calls `before_each` before each piece. Raises BlockingIOError while somebody writes, FileNotFoundError.
    """
    with _locked(whole, fcntl.LOCK_EX) as descriptor, ThreadPoolExecutor(1, "flush") as thread:
        flushed = thread.submit(os.fdatasync, descriptor)
        hashed, start = hashlib.sha256(), 0
        while piece := os.pread(descriptor, PIECE_BYTES, start):
            before_each()
            hashed.update(piece)
            start += len(piece)
        flushed.result()
        check(hashed.hexdigest())
        os.utime(descriptor)  # its chunks may be older than what the collector takes for forgotten
        made_beside(target, lambda: whole.rename(target))


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
def _locked(path: Path, lock: int, flags: int = 0) -> Iterator[int]:
    descriptor = made_beside(path, lambda: os.open(path, os.O_RDWR | flags, 0o600))
    try:
        fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
        if not _still(path, descriptor):  # it became an object between the two calls
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path))
        yield descriptor
    finally:
        os.close(descriptor)


def _still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _write_at(descriptor: int, content: bytearray, start: int) -> None:
    left = memoryview(content)
    while left:
        count = os.pwrite(descriptor, left, start)
        left, start = left[count:], start + count
