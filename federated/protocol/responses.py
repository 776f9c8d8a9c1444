"""Base class of responses, and the field types that messages share."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"

Digest = Annotated[str, Field(pattern=DIGEST_PATTERN)]
Pause = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False, description="seconds")]
BootId = Annotated[str, Field(min_length=8, max_length=64, examples=["5f1c2ad04b7e"])]


class ProtocolResponse(BaseModel):
    """Base of all responses: frozen, unknown fields ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class ArtifactReference(ProtocolResponse):
    digest: Digest
    size_bytes: int


class Problem(ProtocolResponse):
    """RFC 9457 `application/problem+json`. Each entry of `errors` names an invalid field by JSON pointer."""

    type: str = "about:blank"
    title: str
    status: int
    code: str = ""
    detail: str = ""
    errors: list[dict[str, Any]] = Field(default_factory=list)
    tensor: str | None = None
