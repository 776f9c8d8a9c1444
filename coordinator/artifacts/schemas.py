"""Conversion of uploads to API responses. The response models are in `federated.protocol`."""

from collections.abc import Mapping

from coordinator.models import Upload
from federated.protocol import ArtifactReference, UploadResponse


def upload_response(
    upload: Upload, chunks: int, present: tuple[int, ...] = (), urls: Mapping[int, str] | None = None
) -> UploadResponse:
    """The upload's API response. Only a complete one has an `artifact`."""
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
