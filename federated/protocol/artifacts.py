"""Messages of an upload."""

from typing import Any, Literal

from pydantic import Field

from federated.bounds import MAX_LARGE
from federated.protocol.responses import ArtifactReference, Digest, ProtocolResponse
from federated.trainable import Plain


class UploadRequest(Plain):
    """`POST /v1/artifacts/uploads`: announces an upload; chunks follow by `PUT .../chunks/{index}`."""

    size_bytes: int = Field(ge=1, le=MAX_LARGE, examples=[3])
    digest: Digest = Field(examples=["sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"])


class UploadResponse(ProtocolResponse):
    """`chunks_present` lists the chunk indices the coordinator has; a finished upload has `artifact`.

    `problem` says why an upload failed, or what holds it up.

    A chunk in `chunk_urls` may be sent to that URL, by PUT and without a token, instead of through the coordinator.
    """

    upload_id: str
    chunk_bytes: int
    chunks: int
    chunks_present: tuple[int, ...]
    chunk_urls: dict[int, str] = Field(default_factory=dict, repr=False)
    state: Literal["open", "assembling", "complete", "failed"]
    artifact: ArtifactReference | None = None
    problem: dict[str, Any] | None = None
