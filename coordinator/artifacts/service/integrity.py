"""Integrity of stored bytes: detection of lost or damaged artifacts before use, and requests for their repair."""

import time
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.orm import Session

from coordinator.artifacts import repository
from coordinator.artifacts.store import objects
from coordinator.errors import ArtifactDamaged
from coordinator.queue.wakeups import MEND, send
from federated.payloads.header import Header, HeaderError

CHECK_SECONDS = 600.0
_MAX_CHECKS = 4096
_checks: dict[Path, tuple[tuple[int, int, int] | None, float]] = {}
"""Path -> (inode, mtime and size of a verified file, monotonic time at which it must be verified again)."""


def whole_file(digest: str) -> Path:
    """A local file with the artifact's bytes, verified against the digest. Callers must not change it.

    A file is not read again for `CHECK_SECONDS` while it is unmodified. Raises ArtifactDamaged.
    """
    place = objects.local_path(digest)
    check = _checks.get(place)
    if check is not None and check[0] is not None and check[0] == _stamp(place) and time.monotonic() < check[1]:
        return place
    path = objects.whole_file(digest)
    if path is None:
        _checks.pop(place, None)
        raise ArtifactDamaged(digest)
    if len(_checks) > _MAX_CHECKS:
        _checks.clear()
    _checks[path] = (_stamp(path), time.monotonic() + CHECK_SECONDS)
    return path


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return (status.st_ino, status.st_mtime_ns, status.st_size)


def own_header(digest: str) -> Header:
    """The header of a payload that this coordinator wrote. Raises ArtifactDamaged if it cannot be parsed.

    Does not verify the digest, since that would read the whole file.
    """
    try:
        return objects.read_header(digest)
    except (HeaderError, FileNotFoundError):
        raise ArtifactDamaged(digest) from None


def check_whole(digest: str, size_bytes: int) -> None:
    """Checks an artifact before it is sent: the digest in a folder store, only the size in a remote store.

    Raises ArtifactDamaged, after requesting repair.
    """
    try:
        if objects.size_of(digest) != size_bytes:
            raise ArtifactDamaged(digest)
        if objects.is_folder():
            whole_file(digest)
    except ArtifactDamaged as damage:
        raise report_damage(digest) from damage


def report_damage(digest: str) -> ArtifactDamaged:
    """Requests repair of damaged bytes in the background, and returns the error to raise."""
    send(MEND, digest)
    return ArtifactDamaged(digest)


def is_whole(digest: str) -> bool:
    """True if the store has the right bytes. Restores them from a local copy if there is one."""
    if objects.is_whole(digest):
        return True
    if not objects.is_folder() and (copy := objects.whole_file(digest)) is not None:
        objects.drop(digest)
        objects.put_file(copy)
        return True
    return False


def discard(digest: str) -> None:
    """Deletes damaged bytes, so that the right ones can be stored."""
    objects.drop(digest)


def forget_uploads(session: Session, digest: str) -> None:
    """Fails the completed uploads of these bytes, so that the next announcement uploads them again."""
    repository.fail_uploads(session, digest, ArtifactDamaged(digest).problem())


def holders(session: Session, digest: str) -> Sequence[tuple[str, str]]:
    """(part, holder's id) of every hold of the artifact."""
    return repository.holders(session, digest)
