"""References to artifacts: rows, holds that keep them, and grants to read them."""

from collections.abc import Collection
from datetime import datetime
from pathlib import Path

from sqlalchemy.orm import Session

from coordinator.artifacts import repository
from coordinator.artifacts.store import objects
from coordinator.artifacts.store.objects import StoredObject
from coordinator.auth.principals import Principal
from coordinator.db.sessions import lock_row, utcnow
from coordinator.errors import Conflict, NotFound
from coordinator.models import Artifact, Hold
from federated.payloads.header import Header


def put_file(path: Path) -> StoredObject:
    """Puts the file's bytes into the store, without a database row. Idempotent."""
    return objects.put_file(path)


def read_header(digest: str) -> Header:
    """The artifact's safetensors header. Raises HeaderError, FileNotFoundError."""
    return objects.read_header(digest)


def is_stored(digest: str) -> bool:
    """True if the artifact's bytes are in the store."""
    return objects.size_of(digest) is not None


def record(session: Session, stored_object: StoredObject, holder: str, part: str) -> None:
    """Writes the artifact's row if there is none, and a hold of `holder` in `part`.

    Raises Conflict if the bytes were collected since they were put. The caller must put them again.
    """
    write_row(session, stored_object)
    hold(session, stored_object.digest, holder, part)


def write_row(session: Session, stored_object: StoredObject) -> None:
    """Writes the artifact's row if there is none. Raises Conflict if its bytes are not in the store."""
    now = utcnow()
    repository.insert_missing(
        session, Artifact, digest=stored_object.digest, size_bytes=stored_object.size_bytes, created_at=now
    )
    row = lock_row(session, Artifact, stored_object.digest)
    if row is not None:
        row.created_at = now
    # Checked after the row is written: the collector deletes bytes and row together.
    if objects.size_of(stored_object.digest) != stored_object.size_bytes:
        raise Conflict("artifact_gone", f"The bytes of {stored_object.digest} are no longer in the store.")


def hold(session: Session, digest: str, holder: str, part: str) -> None:
    """Adds a hold of `holder` in `part` on a recorded artifact. Idempotent."""
    repository.insert_missing(session, Hold, digest=digest, holder=holder, part=part)


def release(session: Session, holder: str, part: str | None = None) -> None:
    """Ends the holder's holds, or only those of one part."""
    repository.release(session, holder, part)


def grant(session: Session, readers: Collection[tuple[str, str]], until: datetime | None = None) -> None:
    """Lets workers or organizations read artifacts (pairs of digest and principal), until a time or without end.

    Never shortens a grant.
    """
    repository.grant(session, readers, until)


def readable(session: Session, principal: Principal, digest: str, now: datetime) -> Artifact:
    """The artifact, if the principal may read it. Raises NotFound if it may not or there is none."""
    artifact = session.get(Artifact, digest)
    may_read = principal.role == "admin" or repository.may_read(session, digest, principal.reader, now)
    if artifact is None or not may_read:
        raise NotFound("not_found", "There is no artifact with this digest, or you may not read it.")
    return artifact


def uploaded_by(session: Session, principal: str, digest: str) -> int | None:
    """Size of the artifact in bytes if this principal completed an upload of it, otherwise None."""
    if not repository.uploads_of(session, principal, digest, ["complete"]):
        return None
    artifact = session.get(Artifact, digest)
    return None if artifact is None else artifact.size_bytes
