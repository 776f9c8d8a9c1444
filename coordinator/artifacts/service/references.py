"""Artifacts in the store and in the tables: put, recorded, held, granted."""

from collections.abc import Collection
from datetime import datetime
from pathlib import Path

from sqlalchemy.orm import Session

from coordinator.artifacts import repository
from coordinator.artifacts.store import objects
from coordinator.artifacts.store.objects import Stored
from coordinator.auth.principals import Principal
from coordinator.db.sessions import lock_row, utcnow
from coordinator.errors import Conflict, NotFound
from coordinator.models import Artifact, Hold
from federated.payloads.header import Header


def put_file(path: Path) -> Stored:
    """Puts the file's bytes into the store, without a word to the database. Idempotent."""
    return objects.put_file(path)


def read_header(digest: str) -> Header:
    """The artifact's safetensors header. Raises HeaderError, FileNotFoundError."""
    return objects.read_header(digest)


def is_stored(digest: str) -> bool:
    """Whether the artifact's bytes are there."""
    return objects.size_of(digest) is not None


def record(session: Session, stored: Stored, holder: str, part: str) -> None:
    """Writes the artifact's row if there is none, and that `holder` keeps it in `part`.

    Raises Conflict if the bytes were collected since they were put: put them again.
    """
    write_row(session, stored)
    hold(session, stored.digest, holder, part)


def write_row(session: Session, stored: Stored) -> None:
    """Writes the artifact's row if there is none. Raises Conflict if its bytes are not in the store."""
    now = utcnow()
    repository.insert_missing(session, Artifact, digest=stored.digest, size_bytes=stored.size_bytes, created_at=now)
    row = lock_row(session, Artifact, stored.digest)
    if row is not None:
        row.created_at = now
    # Asked after the row is written: the collector deletes bytes and row together.
    if objects.size_of(stored.digest) != stored.size_bytes:
        raise Conflict("artifact_gone", f"The bytes of {stored.digest} are no longer in the store.")


def hold(session: Session, digest: str, holder: str, part: str) -> None:
    """Keeps a recorded artifact for `holder`, in `part`. Idempotent."""
    repository.insert_missing(session, Hold, digest=digest, holder=holder, part=part)


def release(session: Session, holder: str, part: str | None = None) -> None:
    """Ends the holder's holds, or those of one part."""
    repository.release(session, holder, part)


def grant(session: Session, readers: Collection[tuple[str, str]], until: datetime | None = None) -> None:
    """Lets workers or organisations read artifacts (pairs of digest and principal), until then or for ever.

    Never shortens.
    """
    repository.grant(session, readers, until)


def readable(session: Session, principal: Principal, digest: str, now: datetime) -> Artifact:
    """The artifact, if the principal may read it. Raises NotFound, also where it merely may not."""
    artifact = session.get(Artifact, digest)
    allowed = principal.role == "admin" or repository.may_read(session, digest, principal.reader, now)
    if artifact is None or not allowed:
        raise NotFound("not_found", "There is no artifact with this digest, or it is not yours to read.")
    return artifact


def uploaded_by(session: Session, principal: str, digest: str) -> int | None:
    """Bytes of the artifact, if this principal completed an upload of it."""
    if not repository.uploads_of(session, principal, digest, ["complete"]):
        return None
    artifact = session.get(Artifact, digest)
    return None if artifact is None else artifact.size_bytes
