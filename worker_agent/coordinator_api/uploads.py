"""Uploads of artifacts: in chunks, resumed after an interruption."""

import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from federated.protocol import ArtifactReference, UploadRequest, UploadResponse
from worker_agent.coordinator_api.connection import Connection
from worker_agent.errors import CoordinatorAway, CoordinatorRefused, CorruptBytes, NotUnderstood, StoreAway
from worker_agent.storage.file_names import file_name

UPLOAD_ROUNDS = 3
ASSEMBLY_PAUSES_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
ASSEMBLY_LIMIT_SECONDS = 3600.0
MAX_CHUNKS = 100_000
MAX_CHUNK_BYTES = 256 * 1024**2

_log = structlog.get_logger(__name__)


def upload(connection: Connection, source: Path, digest: str) -> ArtifactReference:
    """Send the file at `source`, or the part that the coordinator, which finds an upload by its digest, still lacks.

    Raises CorruptBytes if the coordinator assembled different bytes, NotUnderstood if it never completes.
    """
    request = UploadRequest(size_bytes=source.stat().st_size, digest=digest)
    body = request.model_dump(mode="json")
    response = connection.call("POST", "/v1/artifacts/uploads", UploadResponse, repeat=True, json=body)
    for _ in range(UPLOAD_ROUNDS):
        response = _wait_for_assembly(connection, _send_missing(connection, source, response))
        if response.state == "complete" and response.artifact is not None:
            return response.artifact
        if response.state == "failed":
            raise CorruptBytes(
                f"upload of {source.name} failed: {(response.problem or {}).get('detail', 'no reason')}"
            )
    raise NotUnderstood(f"upload {response.upload_id} is still {response.state} after all its chunks were sent")


def _send_missing(connection: Connection, source: Path, upload: UploadResponse) -> UploadResponse:
    if upload.state != "open":
        return upload
    path = _upload_path(upload.upload_id)
    _check_chunks(upload, source)
    with source.open("rb") as file:
        for index in sorted(set(range(upload.chunks)) - set(upload.chunks_present)):
            file.seek(index * upload.chunk_bytes)
            content = file.read(upload.chunk_bytes)
            if not _put_to_store(connection, upload.chunk_urls.get(index), content):
                connection.send("PUT", f"{path}/chunks/{index}", repeat=True, content=content)
    try:
        return connection.call("POST", f"{path}/complete", UploadResponse, repeat=True)
    except CoordinatorRefused as error:
        if error.code == "digest_mismatch":
            raise CorruptBytes(f"upload of {source.name}: {error.detail}") from error
        if error.status != 409:
            raise
        return connection.call("GET", path, UploadResponse, repeat=True)


def _check_chunks(upload: UploadResponse, source: Path) -> None:
    """Raises NotUnderstood for chunks that do not fit the file or this node's memory."""
    size_bytes, chunk_bytes = source.stat().st_size, upload.chunk_bytes
    if not (0 < chunk_bytes <= MAX_CHUNK_BYTES and upload.chunks == -(-size_bytes // chunk_bytes) <= MAX_CHUNKS):
        raise NotUnderstood(f"{upload.chunks} chunks of {chunk_bytes} bytes do not make {size_bytes} bytes")


def _put_to_store(connection: Connection, url: str | None, content: bytes) -> bool:
    """Send the chunk to a store that this node's owner listed. False: it has to go through the coordinator."""
    target = connection.origins.target(url) if url is not None and connection.origins.use_stores() else None
    if target is None:
        return False
    try:
        connection.put_to_store(target, content)
    except StoreAway as error:
        _log.warning("store_avoided", reason=str(error))
        connection.origins.avoid_stores()
        return False
    return True


def _wait_for_assembly(connection: Connection, upload: UploadResponse) -> UploadResponse:
    """Wait until the coordinator has assembled the chunks."""
    deadline = time.monotonic() + ASSEMBLY_LIMIT_SECONDS
    for pause_seconds in _pauses():
        if upload.state != "assembling":
            return upload
        if connection.stopping.wait(pause_seconds) or time.monotonic() > deadline:
            raise CoordinatorAway(f"upload {upload.upload_id} is still being assembled")
        upload = connection.call("GET", _upload_path(upload.upload_id), UploadResponse, repeat=True)
    return upload


def _pauses() -> Iterator[float]:
    yield from ASSEMBLY_PAUSES_SECONDS
    while True:
        yield ASSEMBLY_PAUSES_SECONDS[-1]


def _upload_path(upload_id: str) -> str:
    return f"/v1/artifacts/uploads/{file_name(upload_id)}"
