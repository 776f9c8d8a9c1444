"""Files that are complete after a crash: written under another name, flushed to disk, then renamed."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

UNFINISHED_SUFFIX = ".unfinished"
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def write_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write `content` to `path` atomically: a reader gets the old bytes or the new ones."""
    partial = path.with_name(path.name + UNFINISHED_SUFFIX)
    partial.unlink(missing_ok=True)
    with write_aside(partial, path, lambda: os.fdopen(os.open(partial, _NEW_FILE, mode), "wb")) as file:
        file.write(content)
        flush(file)
    sync(path.parent)


def create_file(path: Path, content: bytes) -> None:
    """Write a new file atomically. Raises FileExistsError if another process was faster, whose file stays."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}") as temporary:
        temporary.write(content)
        flush(temporary)
        os.link(temporary.name, path)
    sync(path.parent)


@contextmanager
def write_aside(aside: Path, path: Path, create: Callable[[], IO[bytes]]) -> Iterator[IO[bytes]]:
    """Write the file `aside` that `create` opens. It becomes `path` when the block ends; on an error it is deleted.

    Syncs neither bytes nor name.
    """
    file = create()
    try:
        with file:
            yield file
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def move(source: Path, target: Path) -> None:
    """Rename within one file system and flush the new name to disk."""
    source.replace(target)
    sync(target.parent)


def flush(file: IO[bytes]) -> None:
    """Flush all bytes of a file that is open for writing to disk."""
    file.flush()
    os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
