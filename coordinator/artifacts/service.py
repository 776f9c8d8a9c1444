"""What happens to artifacts. Those above write theirs with `put_file` and `record`; uploads come over HTTP.

Knowing a digest gives no right to read it: rights are rows (`grant`). An artifact is kept while somebody holds it
(`record`, `hold`), and for `artifact_min_age_seconds` after it was written or uploaded last.
"""

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy.orm import Session

from coordinator.artifacts import repository, schemas, store
from coordinator.artifacts.store import Stored as Stored
from coordinator.artifacts.store import is_stored as is_stored
from coordinator.database import lock_row, reading, utcnow, writing
from coordinator.errors import Conflict, NotFound, TooLarge, Unprocessable
from coordinator.models import Artifact, Grant, Hold, Upload
from coordinator.models.base import new_id
from coordinator.nudge import ASSEMBLE, nudge
from coordinator.security import Principal, require_role
from coordinator.settings import get_settings
from federated.header import Header
from federated.protocol import UploadAnswer, UploadRequest

_COLLECTED_AT_ONCE = 100
_log = structlog.get_logger(__name__)


def put_file(path: Path) -> Stored:
    """Puts the file's bytes into the store, without a word to the database. Idempotent."""
    return store.put_file(path)


def local_file(digest: str) -> Path:
    """A file on this machine with the artifact's bytes; not to be changed. Raises FileNotFoundError."""
    return store.local_file(digest)


def read_header(digest: str) -> Header:
    """The artifact's safetensors header. Raises HeaderError, FileNotFoundError."""
    return store.read_header(digest)


def record(session: Session, stored: Stored, holder: str, part: str) -> None:
    """Writes the artifact's row if there is none, and that `holder` keeps it in `part`.

    Raises Conflict if the bytes were collected since they were put: put them again.
    """
    _write_row(session, stored)
    hold(session, stored.digest, holder, part)


def _write_row(session: Session, stored: Stored) -> None:
    now = utcnow()
    repository.insert_missing(session, Artifact, digest=stored.digest, size_bytes=stored.size_bytes, created_at=now)
    row = lock_row(session, Artifact, stored.digest)
    if row is not None:
        row.created_at = now
    # Asked after the row is written: the collector deletes bytes and row together.
    if store.size_of(stored.digest) != stored.size_bytes:
        raise Conflict("artifact_gone", f"The bytes of {stored.digest} are no longer in the store.")


def hold(session: Session, digest: str, holder: str, part: str) -> None:
    """Keeps a recorded artifact for `holder`, in `part`. Idempotent."""
    repository.insert_missing(session, Hold, digest=digest, holder=holder, part=part)


def release(session: Session, holder: str, part: str | None = None) -> None:
    """Ends the holder's holds, or those of one part."""
    repository.release(session, holder, part)


def grant(session: Session, digest: str, principal: str, until: datetime | None = None) -> None:
    """Lets a worker or an organisation read the artifact, until then or for ever; never shortens."""
    repository.insert_missing(session, Grant, digest=digest, principal=principal, until=until)
    repository.prolong_grant(session, digest, principal, until)


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


# ---- uploads


def announce(session: Session, principal: Principal, request: UploadRequest, now: datetime) -> UploadAnswer:
    """Opens an upload, or finds the principal's own of the same digest: whoever lost the id goes on with it."""
    require_role(principal, "worker", "owner", "operator")
    settings = get_settings()
    if request.size_bytes > settings.max_artifact_bytes:
        raise TooLarge("artifact_too_large", f"An artifact has at most {settings.max_artifact_bytes} bytes.")
    upload = _resumable(session, principal, request)
    if upload is None:
        upload = Upload(
            id=new_id("upl"), principal=principal.reader, digest=request.digest, size_bytes=request.size_bytes,
            chunk_bytes=settings.chunk_bytes, state="open", created_at=now,
        )  # fmt: skip
        session.add(upload)
    return _answer(upload)


def _resumable(session: Session, principal: Principal, request: UploadRequest) -> Upload | None:
    kept = uploaded_by(session, principal.reader, request.digest) is not None
    states = ["complete"] if kept else ["open", "assembling"]
    found = repository.uploads_of(session, principal.reader, request.digest, states)
    return next((upload for upload in found if upload.size_bytes == request.size_bytes), None)


def show_upload(session: Session, principal: Principal, upload_id: str) -> UploadAnswer:
    """The principal's own upload, with the chunks that are there. Raises NotFound."""
    return _answer(_own_upload(session, principal, upload_id))


def chunk_size(session: Session, principal: Principal, upload_id: str, index: int) -> int:
    """Bytes that chunk `index` of an open upload must have. Raises NotFound, Conflict."""
    upload = _own_upload(session, principal, upload_id)
    if upload.state != "open":
        raise Conflict("upload_closed", f"The upload is {upload.state}: it takes no more chunks.")
    if not 0 <= index < _chunks(upload):
        raise NotFound("chunk_unknown", f"This upload has the chunks 0 to {_chunks(upload) - 1}.")
    return min(upload.chunk_bytes, upload.size_bytes - index * upload.chunk_bytes)


def complete(principal: Principal, upload_id: str) -> UploadAnswer:
    """Ends an upload whose chunks are all there: one chunk is hashed at once, more in the background.

    Raises NotFound; Conflict if chunks are missing; Unprocessable if the bytes have another digest.
    """
    with reading() as session:
        upload = _own_upload(session, principal, upload_id)
    if upload.state == "open":
        _check_chunks(upload)
        if _chunks(upload) > 1:
            return _wait_for_assembly(upload_id)
        _finish(upload, partial(store.adopt, upload.id, upload.digest))
        with reading() as session:
            upload = _own_upload(session, principal, upload_id)
    if upload.state == "failed":
        raise Unprocessable("digest_mismatch", (upload.problem or {}).get("detail", "The upload failed."))
    return _answer(upload)


def assemble(upload_id: str) -> None:
    """Joins the chunks of an upload that waits for it; does nothing if it does not, or another process is at it."""
    upload = _claim(upload_id)
    if upload is None:
        return
    claim = _Claim(upload_id)
    _finish(upload, partial(store.assemble, upload.id, _chunks(upload), upload.digest, claim.renew))


def resume(now: datetime) -> None:
    """Wakes assembly for the uploads whose message was lost or whose process died."""
    with writing() as session:
        for upload_id in repository.stuck_uploads(session, now):
            nudge(session, ASSEMBLE, upload_id)


def _own_upload(session: Session, principal: Principal, upload_id: str) -> Upload:
    upload = session.get(Upload, upload_id)
    if upload is None or upload.principal != principal.reader:
        raise NotFound("not_found", "There is no upload with this id, or it is not yours.")
    return upload


def _answer(upload: Upload) -> UploadAnswer:
    present = store.chunks_present(upload.id) if upload.state == "open" else ()
    return schemas.upload_answer(upload, _chunks(upload), present)


def _chunks(upload: Upload) -> int:
    return math.ceil(upload.size_bytes / upload.chunk_bytes)


def _check_chunks(upload: Upload) -> None:
    missing = sorted(set(range(_chunks(upload))) - set(store.chunks_present(upload.id)))
    if missing:
        first = ", ".join(map(str, missing[:10]))
        raise Conflict("chunks_missing", f"{len(missing)} of {_chunks(upload)} chunks are missing, first: {first}.")


def _wait_for_assembly(upload_id: str) -> UploadAnswer:
    with writing() as session:
        upload = lock_row(session, Upload, upload_id)
        if upload is None:
            raise NotFound("not_found", "The upload has expired.")
        if upload.state == "open":
            upload.state, upload.version = "assembling", upload.version + 1
            nudge(session, ASSEMBLE, upload_id)
        return _answer(upload)


def _claim(upload_id: str) -> Upload | None:
    now = utcnow()
    with writing() as session:
        upload = lock_row(session, Upload, upload_id)
        if upload is None or upload.state != "assembling" or (upload.claimed_until or now) > now:
            return None
        upload.claimed_until = now + timedelta(seconds=get_settings().claim_seconds)
        upload.version += 1
        return upload


class _Claim:
    """Renews the claim on an upload when half of it is over."""

    def __init__(self, upload_id: str) -> None:
        self._upload_id = upload_id
        self._half = timedelta(seconds=get_settings().claim_seconds / 2)
        self._renew_at = utcnow() + self._half

    def renew(self) -> None:
        if utcnow() < self._renew_at:
            return
        self._renew_at = utcnow() + self._half
        with writing() as session:
            upload = lock_row(session, Upload, self._upload_id)
            if upload is not None and upload.state == "assembling":
                upload.claimed_until = utcnow() + 2 * self._half


def _finish(upload: Upload, make: Callable[[], None]) -> None:
    """Makes the object outside any transaction, then records what came of it. A loser of a race changes nothing."""
    problem = None
    try:
        make()
    except store.WrongBytes as error:
        problem = Unprocessable("digest_mismatch", f"{error}. Upload it again.").problem()
    except FileNotFoundError:
        _log.info("upload_already_ended", upload_id=upload.id)
        return
    with writing() as session:
        row = lock_row(session, Upload, upload.id)
        if row is None or row.state not in ("open", "assembling"):
            return
        row.state, row.problem, row.version = ("failed" if problem else "complete"), problem, row.version + 1
        if problem is None:
            _write_row(session, Stored(row.digest, row.size_bytes))
    store.drop_chunks(upload.id)


# ---- collection


def collect(now: datetime) -> int:
    """Deletes what nobody holds and what expired; returns the bytes freed."""
    settings = get_settings()
    oldest = now - timedelta(seconds=settings.artifact_min_age_seconds)
    _expire_uploads(now - timedelta(seconds=settings.upload_expiry_seconds))
    store.sweep(oldest)
    _drop_unknown(oldest)
    freed_bytes = 0
    while True:
        with writing() as session:
            taken = repository.take_unheld(session, oldest, _COLLECTED_AT_ONCE)
            # Before the commit: `_write_row` of the same digest waits for it, and then sees that the bytes are gone.
            for artifact in taken:
                store.drop(artifact.digest)
        freed_bytes += sum(artifact.size_bytes for artifact in taken)
        if len(taken) < _COLLECTED_AT_ONCE:
            _log.info("artifacts_collected", freed_bytes=freed_bytes)
            return freed_bytes


def _expire_uploads(created_before: datetime) -> None:
    with writing() as session:
        expired = repository.expired_uploads(session, created_before, _COLLECTED_AT_ONCE)
        for upload in expired:
            session.delete(upload)
    for upload in expired:
        store.drop_chunks(upload.id)


def _drop_unknown(written_before: datetime) -> None:
    """Objects that were put and never recorded: their step lost a race, or its process died."""
    for digest in store.old_digests(written_before):
        with writing() as session:
            if not repository.known(session, [digest]):
                store.drop(digest)
