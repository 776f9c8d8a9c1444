"""File access of a folder store: reading and writing in large pieces, without obstore.

obstore reads a folder a few kB at a time and passes every piece between two runtimes, which costs several times the
CPU time of the reading itself. The layout stays compatible: a file appears under its name whole or not at all. Until
then it has a name that ends in `#` and digits, which obstore ignores.
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

from federated import atomic_files

PIECE_BYTES = 1024**2
FLUSH_BYTES = 64 * 1024**2
_ATTEMPTS = 5
_MAX_SUFFIX = 10**18
Result = TypeVar("Result")


def pieces(path: Path) -> Iterator[bytes]:
    """The file's bytes. Raises FileNotFoundError on the first iteration."""
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


async def pieces_between(path: Path, start: int, end: int) -> AsyncIterator[bytes]:
    """The bytes from `start` up to `end`, exclusive. Each piece is read in a thread. Raises FileNotFoundError."""
    with path.open("rb", buffering=0) as file:
        while start < end and (
            piece := await to_thread.run_sync(_read_at, file, start, min(PIECE_BYTES, end - start))
        ):
            start += len(piece)
            yield piece


def _read_at(file: IO[bytes], start: int, count: int) -> bytes:
    return os.pread(file.fileno(), count, start)


class DurableWriter:
    """Writer that flushes to disk while it writes, so that little is left to flush at the end."""

    def __init__(self, file: IO[bytes], thread: Executor, flush_bytes: int) -> None:
        self._file, self._thread, self._flush_bytes = file, thread, flush_bytes
        self._flushing: Future[None] | None = None
        self._pending_bytes = 0

    def write(self, piece: bytes) -> None:
        self._file.write(piece)
        self._pending_bytes += len(piece)
        if self._pending_bytes >= self._flush_bytes and (self._flushing is None or self._flushing.done()):
            self._await_flush()
            self._flushing, self._pending_bytes = self._thread.submit(os.fdatasync, self._file.fileno()), 0

    def end(self) -> None:
        """Waits until all bytes are on disk."""
        self._await_flush()
        atomic_files.flush(self._file)

    def _await_flush(self) -> None:
        if self._flushing is not None:
            self._flushing.result()  # raises: a disk reports an error only once


@contextmanager
def write_durably(path: Path, flush_bytes: int = FLUSH_BYTES) -> Iterator[DurableWriter]:
    """Writes a file that appears when the block ends, its bytes synced but not its name. No file on an error."""
    with write_aside(path) as file, ThreadPoolExecutor(1, "flush") as thread:
        writer = DurableWriter(file, thread, flush_bytes)
        yield writer
        writer.end()


def sweep(place: Path, before: datetime) -> None:
    """Deletes files that processes left when they died during a write before that time."""
    for path in place.rglob("*#*"):
        with suppress(FileNotFoundError):  # renamed in the meantime
            if path.stat().st_mtime < before.timestamp():
                path.unlink()


@contextmanager
def write_aside(path: Path) -> Iterator[IO[bytes]]:
    """Writes a file that appears when the block ends. No file on an error."""
    aside = path.with_name(f"{path.name}#{secrets.randbelow(_MAX_SUFFIX)}")
    with atomic_files.write_aside(aside, path, lambda: create_with_folder(aside, lambda: aside.open("x+b"))) as file:
        yield file


def create_with_folder(path: Path, make: Callable[[], Result]) -> Result:
    """Calls `make` after creating the path's folder. Retries if obstore removes the empty folder in between."""
    for _ in range(_ATTEMPTS):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return make()
    return make()
