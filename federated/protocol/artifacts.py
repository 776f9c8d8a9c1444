"""Messages of the upload protocol."""

from typing import Any, Literal

from pydantic import Field

from federated.bounds import MAX_LARGE
from federated.protocol.responses import ArtifactReference, Digest, ProtocolResponse
from federated.trainable import Plain


class UploadRequest(Plain):
    """`POST /v1/artifacts/uploads`: announces an upload. Its chunks follow with `PUT .../chunks/{index}`."""

    size_bytes: int = Field(ge=1, le=MAX_LARGE, examples=[3])
    digest: Digest = Field(examples=["sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"])


class UploadResponse(ProtocolResponse):
    """State of an upload. A complete upload has an `artifact`.

    `chunks_present` lists the indices of the chunks that the coordinator has. `problem` says why an upload failed or
    is delayed. A chunk listed in `chunk_urls` may be sent straight to that URL with PUT and without a token.
    """

    upload_id: str
    chunk_bytes: int
    chunks: int
    chunks_present: tuple[int, ...]
    chunk_urls: dict[int, str] = Field(default_factory=dict, repr=False)
    state: Literal["open", "assembling", "complete", "failed"]
    artifact: ArtifactReference | None = None
    problem: dict[str, Any] | None = None
