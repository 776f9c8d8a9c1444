"""Files that are complete after a crash: written under another name, flushed to disk, then renamed."""

import errno
import os
import re
from pathlib import Path

from worker_agent.errors import NotUnderstood

UNFINISHED_SUFFIX = ".unfinished"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def write_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write `content` to `path` atomically: a reader gets the old bytes or the new ones."""
    partial = path.with_name(path.name + UNFINISHED_SUFFIX)
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    move(partial, path)


def move(source: Path, target: Path) -> None:
    """Rename within one file system and flush the new name to disk."""
    source.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_full(error: BaseException) -> bool:
    """Whether a write failed because the disk is full or a quota is exhausted."""
    return isinstance(error, OSError) and error.errno in _FULL


def file_name(identifier: str) -> str:
    """The id, if it is a valid file name. Raises NotUnderstood, since ids come from outside."""
    if _ID.fullmatch(identifier) is None:
        raise NotUnderstood(f"the id {identifier[:140]!r} cannot name a file")
    return identifier
