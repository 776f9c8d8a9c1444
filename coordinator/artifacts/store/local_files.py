"""Files of a store that is a folder on this machine, read and written without obstore, in large pieces.

obstore reads such a folder a few kB at a time and hands every piece from runtime to runtime: several times the
processor time of the reading itself. What it sees stays the same: a file appears under its name whole or not at all,
and is written beside it under a name that ends in `#` and digits, which obstore passes over.
"""

import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, TypeVar

from anyio import to_thread

PIECE_BYTES = 1024**2
FLUSH_BYTES = 64 * 1024**2
_ATTEMPTS = 5
_UNFINISHED = 10**18
Made = TypeVar("Made")


def pieces(path: Path) -> Iterator[bytes]:
    """The file's bytes. Raises FileNotFoundError at the first step."""
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


async def pieces_between(path: Path, start: int, end: int) -> AsyncIterator[bytes]:
    """The bytes from `start` up to, not with, `end`, each piece read in a thread. Raises FileNotFoundError."""
    with path.open("rb", buffering=0) as file:
        while start < end and (
            piece := await to_thread.run_sync(_read_at, file, start, min(PIECE_BYTES, end - start))
        ):
            start += len(piece)
            yield piece


def _read_at(file: IO[bytes], start: int, count: int) -> bytes:
    return os.pread(file.fileno(), count, start)


class Durable:
    """A file that is written now and will be on disk. The disk works along: little is left to wait for at the end."""

    def __init__(self, file: IO[bytes], thread: Executor, flush_bytes: int) -> None:
        self._file, self._thread, self._flush_bytes = file, thread, flush_bytes
        self._flushing: Future[None] | None = None
        self._unflushed = 0

    def write(self, piece: bytes) -> None:
        """Writes the piece."""
        self._file.write(piece)
        self._unflushed += len(piece)
        if self._unflushed >= self._flush_bytes and (self._flushing is None or self._flushing.done()):
            self._flushed()
            self._flushing, self._unflushed = self._thread.submit(os.fdatasync, self._file.fileno()), 0

    def end(self) -> None:
        """Waits until all of it is on disk."""
        self._flushed()
        self._file.flush()
        os.fsync(self._file.fileno())

    def _flushed(self) -> None:
        if self._flushing is not None:
            self._flushing.result()  # a disk tells of an error once, and then no more


@contextmanager
def durable(path: Path, flush_bytes: int = FLUSH_BYTES) -> Iterator[Durable]:
    """What is written inside is the file when the block ends, on disk but for its name; on an error there is none."""
    with beside(path) as file, ThreadPoolExecutor(1, "flush") as thread:
        writer = Durable(file, thread, flush_bytes)
        yield writer
        writer.end()


def sync(path: Path) -> None:
    """Puts the file and its name on disk."""
    for each in (path, path.parent):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sweep(place: Path, before: datetime) -> None:
    """Deletes what processes that died in the middle of a write left before that time."""
    for path in place.rglob("*#*"):
        with suppress(FileNotFoundError):  # one that was being written then, and has its name now
            if path.stat().st_mtime < before.timestamp():
                path.unlink()


@contextmanager
def beside(path: Path) -> Iterator[IO[bytes]]:
    """What is written inside is the file when the block ends; on an error there is none."""
    unfinished = path.with_name(f"{path.name}#{secrets.randbelow(_UNFINISHED)}")
    try:
        with _opened(unfinished) as file:
            yield file
        unfinished.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            unfinished.unlink()
        raise


def _opened(path: Path) -> IO[bytes]:
    return made_beside(path, lambda: path.open("x+b"))


def made_beside(path: Path, make: Callable[[], Made]) -> Made:
    """What `make` makes in the path's folder, which is made; again if obstore takes it away because it is empty."""
    for _ in range(_ATTEMPTS):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return make()
    return make()
