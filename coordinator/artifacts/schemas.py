"""Answers of the artifact calls are `federated.protocol`'s; here stands what the protocol does not name."""

from collections.abc import Mapping

from coordinator.models import Upload
from federated.protocol import ArtifactReference, UploadResponse


def upload_answer(
    upload: Upload, chunks: int, present: tuple[int, ...] = (), urls: Mapping[int, str] | None = None
) -> UploadResponse:
    """The upload as its principal sees it; a complete one names the artifact."""
    complete = upload.state == "complete"
    return UploadResponse(
        upload_id=upload.id,
        chunk_bytes=upload.chunk_bytes,
        chunks=chunks,
        chunks_present=tuple(range(chunks)) if complete else present,
        chunk_urls=dict(urls or {}),
        state=upload.state,
        artifact=ArtifactReference(digest=upload.digest, size_bytes=upload.size_bytes) if complete else None,
        problem=upload.problem,
    )
