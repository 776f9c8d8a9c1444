"""Bytes that are lost, or are no longer those of their digest: found before they are used, and told to be mended."""

import time
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.orm import Session

from coordinator.artifacts import repository
from coordinator.artifacts.store import objects
from coordinator.errors import ArtifactDamaged
from coordinator.queue.wakeups import MEND, send
from federated.payloads.header import Header, HeaderError

LOOKED_SECONDS = 600.0
_MANY = 4096
_looked: dict[Path, tuple[tuple[int, int, int] | None, float]] = {}
"""Files that were whole: how they looked, and until when that is believed."""


def whole_file(digest: str) -> Path:
    """A file on this machine with the artifact's bytes, held against the digest; not to be changed.

    One that was looked at a moment ago, and not written since, is not read again. Raises ArtifactDamaged.
    """
    place = objects.local_path(digest)
    looked = _looked.get(place)
    if looked is not None and looked[0] is not None and looked[0] == _stamp(place) and time.monotonic() < looked[1]:
        return place
    path = objects.whole_file(digest)
    if path is None:
        _looked.pop(place, None)
        raise ArtifactDamaged(digest)
    if len(_looked) > _MANY:
        _looked.clear()
    _looked[path] = (_stamp(path), time.monotonic() + LOOKED_SECONDS)
    return path


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def own_header(digest: str) -> Header:
    """The header of a payload that this coordinator made. Raises ArtifactDamaged.

    The file may be longer than one wants to read for a header: what is damaged and still reads well is not found.
    """
    try:
        return objects.read_header(digest)
    except (HeaderError, FileNotFoundError):
        raise ArtifactDamaged(digest) from None


def check_whole(digest: str, size_bytes: int) -> None:
    """Looks at the bytes before somebody gets them: all of them in a folder, how many in a remote store.

    Raises ArtifactDamaged, which is reported.
    """
    try:
        if objects.size_of(digest) != size_bytes:
            raise ArtifactDamaged(digest)
        if objects.is_folder():
            whole_file(digest)
    except ArtifactDamaged as damage:
        raise reported(digest) from damage


def reported(digest: str) -> ArtifactDamaged:
    """The error for damaged bytes; the background is asked to make them again."""
    send(MEND, digest)
    return ArtifactDamaged(digest)


def is_whole(digest: str) -> bool:
    """Whether the bytes in the store are those of the digest; put back where a copy of them is left here."""
    if objects.is_whole(digest):
        return True
    if not objects.is_folder() and (copy := objects.whole_file(digest)) is not None:
        objects.drop(digest)
        objects.put_file(copy)
        return True
    return False


def discard(digest: str) -> None:
    """Deletes damaged bytes, so that the right ones can be put in their place."""
    objects.drop(digest)


def forget_uploads(session: Session, digest: str) -> None:
    """The completed uploads of these bytes count no more: who announces them sends them again."""
    repository.fail_uploads(session, digest, ArtifactDamaged(digest).problem())


def holders(session: Session, digest: str) -> Sequence[tuple[str, str]]:
    """Who keeps the artifact: (part, holder's id)."""
    return repository.holders(session, digest)
