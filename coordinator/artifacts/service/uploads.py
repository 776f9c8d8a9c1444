"""Chunked uploads: announcement, chunks, completion, and assembly in the background."""

import math
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from coordinator.artifacts import repository, schemas
from coordinator.artifacts.service.references import uploaded_by, write_row
from coordinator.artifacts.store import chunks, presigned
from coordinator.artifacts.store.objects import StoredObject
from coordinator.auth.principals import Principal, Role, require_role
from coordinator.db.sessions import lock_row, reading, utcnow, writing
from coordinator.errors import Conflict, CoordinatorError, NotFound, TooLarge, Unprocessable, cause_of
from coordinator.models import Upload
from coordinator.models.base import new_id
from coordinator.queue.wakeups import ASSEMBLE, nudge
from coordinator.settings import get_settings
from federated.protocol import UploadRequest, UploadResponse

_UPLOADERS: tuple[Role, ...] = ("worker", "owner", "operator")
_ACTIVE = ("open", "assembling")
_log = structlog.get_logger(__name__)


def announce(session: Session, principal: Principal, request: UploadRequest, now: datetime) -> UploadResponse:
    """Opens an upload, or returns the principal's unfinished one of the same digest, so that it can be resumed."""
    require_role(principal, *_UPLOADERS)
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
    return _to_response(upload)


def _resumable(session: Session, principal: Principal, request: UploadRequest) -> Upload | None:
    is_complete = uploaded_by(session, principal.reader, request.digest) is not None
    states = ["complete"] if is_complete else list(_ACTIVE)
    uploads = repository.uploads_of(session, principal.reader, request.digest, states)
    return next((upload for upload in uploads if upload.size_bytes == request.size_bytes), None)


def show_upload(session: Session, principal: Principal, upload_id: str) -> UploadResponse:
    """The principal's upload, with the chunks that are stored. Raises NotFound."""
    return _to_response(_own_upload(session, principal, upload_id))


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """Position of a chunk in its upload. `has_problem`: the upload has a recorded problem."""

    offset: int
    size_bytes: int
    has_problem: bool


def place_of(session: Session, principal: Principal, upload_id: str, index: int) -> ChunkPlace:
    """Position of chunk `index` in an open upload. Raises NotFound, Forbidden, Conflict."""
    upload = _own_upload(session, principal, upload_id)
    require_role(principal, *_UPLOADERS)
    if upload.state != "open":
        raise Conflict("upload_closed", f"The upload is {upload.state}: it accepts no more chunks.")
    if not 0 <= index < _chunks(upload):
        raise NotFound("chunk_unknown", f"This upload has the chunks 0 to {_chunks(upload) - 1}.")
    return ChunkPlace(index * upload.chunk_bytes, _chunk_bytes(upload, index), upload.problem is not None)


def complete(principal: Principal, upload_id: str) -> UploadResponse:
    """Completes an upload. A single chunk is hashed at once, several are assembled in the background.

    Raises NotFound, Forbidden; Conflict if chunks are missing; Unprocessable if the bytes have another digest.
    """
    with reading() as session:
        upload = _own_upload(session, principal, upload_id)
    require_role(principal, *_UPLOADERS)
    if upload.state == "open":
        _check_chunks(upload)
        if _chunks(upload) > 1:
            return _wait_for_assembly(upload_id)
        _finish(upload, partial(chunks.assemble, upload.id, 1, upload.digest, lambda: None))
        with reading() as session:
            upload = _own_upload(session, principal, upload_id)
    if upload.state == "failed":
        raise Unprocessable("digest_mismatch", (upload.problem or {}).get("detail", "The upload failed."))
    return _to_response(upload)


def assemble(upload_id: str) -> None:
    """Assembles the chunks of an upload. Does nothing unless it waits for assembly and no process has claimed it.

    An error is recorded as the upload's problem until assembly continues.
    """
    upload = _claim(upload_id)
    if upload is None:
        return
    claim = _Claim(upload_id)
    try:
        _finish(upload, partial(chunks.assemble, upload.id, _chunks(upload), upload.digest, claim.renew))
    except (OSError, CoordinatorError) as error:  # disk or store: retried after the claim expires
        report_upload_problem(upload_id, error)


def report_upload_problem(upload_id: str, error: Exception) -> None:
    """Records why the upload cannot continue for now. The cause is not the upload itself."""
    _log.warning("upload_held_up", upload_id=upload_id, reason=str(error))
    with suppress(OperationalError), writing() as session:  # a full database cannot store it
        _set_problem(session, upload_id, cause_of(error).problem())


def clear_upload_problem(upload_id: str) -> None:
    """Clears the upload's recorded problem."""
    with writing() as session:
        _set_problem(session, upload_id, None)


def upload_problems(session: Session, principals: Collection[str], since: datetime) -> list[str]:
    """Sorted problem codes of the unfinished uploads that these principals announced since then."""
    problems = repository.problems_of_open(session, principals, since)
    return sorted({problem["code"] for problem in problems if problem is not None})


def resume(now: datetime) -> None:
    """Enqueues assembly of uploads whose message was lost or whose process died."""
    with writing() as session:
        for upload_id in repository.stuck_uploads(session, now):
            nudge(session, ASSEMBLE, upload_id)


def _own_upload(session: Session, principal: Principal, upload_id: str) -> Upload:
    upload = session.get(Upload, upload_id)
    if upload is None or upload.principal != principal.reader:
        raise NotFound("not_found", "There is no upload with this id, or it is not yours.")
    return upload


def _to_response(upload: Upload) -> UploadResponse:
    if upload.state != "open":
        return schemas.upload_response(upload, _chunks(upload))
    present = _present(upload)
    # A single chunk is small and assembled by the web process, so it is sent through that process.
    missing = sorted(set(range(_chunks(upload))) - set(present)) if _chunks(upload) > 1 else []
    return schemas.upload_response(upload, _chunks(upload), present, presigned.chunk_urls(upload.id, missing))


def _present(upload: Upload) -> tuple[int, ...]:
    """Indices of the chunks of the right size. A client with a presigned URL may write fewer or more bytes."""
    sizes = chunks.sizes(upload.id)
    return tuple(index for index in range(_chunks(upload)) if sizes.get(index) == _chunk_bytes(upload, index))


def _chunk_bytes(upload: Upload, index: int) -> int:
    return min(upload.chunk_bytes, upload.size_bytes - index * upload.chunk_bytes)


def _chunks(upload: Upload) -> int:
    return math.ceil(upload.size_bytes / upload.chunk_bytes)


def _check_chunks(upload: Upload) -> None:
    missing = sorted(set(range(_chunks(upload))) - set(_present(upload)))
    if missing:
        first = ", ".join(map(str, missing[:10]))
        raise Conflict("chunks_missing", f"{len(missing)} of {_chunks(upload)} chunks are missing, first: {first}.")


def _wait_for_assembly(upload_id: str) -> UploadResponse:
    with writing() as session:
        upload = lock_row(session, Upload, upload_id)
        if upload is None:
            raise NotFound("not_found", "The upload has expired.")
        if upload.state == "open":
            upload.state, upload.version = "assembling", upload.version + 1
            nudge(session, ASSEMBLE, upload_id)
        return _to_response(upload)


def _claim(upload_id: str) -> Upload | None:
    now = utcnow()
    with writing() as session:
        upload = lock_row(session, Upload, upload_id)
        if upload is None or upload.state != "assembling" or (upload.claimed_until or now) > now:
            return None
        upload.claimed_until = now + timedelta(seconds=get_settings().claim_seconds)
        upload.version += 1
        return upload


def _set_problem(session: Session, upload_id: str, problem: dict[str, Any] | None) -> None:
    upload = lock_row(session, Upload, upload_id)
    if upload is not None and upload.state in _ACTIVE and upload.problem != problem:
        upload.problem, upload.version = problem, upload.version + 1


class _Claim:
    """Renews the claim on an upload after half of its duration."""

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
    """Makes the object outside any transaction, then records the result. The loser of a race changes nothing."""
    problem = None
    try:
        make()
    except chunks.WrongBytes as error:
        problem = Unprocessable("digest_mismatch", f"{error}. Upload it again.").problem()
    except FileNotFoundError:
        _log.info("upload_already_ended", upload_id=upload.id)
        return
    with writing() as session:
        row = lock_row(session, Upload, upload.id)
        if row is None or row.state not in _ACTIVE:
            return
        row.state, row.problem, row.version = ("failed" if problem else "complete"), problem, row.version + 1
        if problem is None:
            write_row(session, StoredObject(row.digest, row.size_bytes))
    chunks.drop(upload.id)
