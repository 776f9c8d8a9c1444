"""Requests and responses of the endpoints for organizations, API keys, enrollment tokens, ledger and audit log."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from coordinator.web.pagination import Listing
from coordinator.web.routes import ShownOnce
from federated.protocol import Name

MAX_TOKEN_SECONDS = 366 * 24 * 3600.0
_WEEK_SECONDS = 7 * 24 * 3600.0


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("is outside the range of years in UTC") from None


def _no_number(text: object) -> object:
    """Refuses numbers, which pydantic would read as seconds since 1970."""
    if isinstance(text, int | float) or (
        isinstance(text, str) and text.strip().lstrip("+-").replace(".", "", 1).isdecimal()
    ):
        raise ValueError("is a number, not a time such as 2026-03-01T09:30:00Z")
    return text


Time = Annotated[AwareDatetime, BeforeValidator(_no_number), AfterValidator(_in_utc)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Response(BaseModel):
    model_config = ConfigDict(from_attributes=True, frozen=True)


class OrganizationCreate(_Request):
    """A new organization. Names are unique in the installation."""

    name: Name = Field(examples=["City clinic"])


class OrganizationResponse(_Response):
    """An organization."""

    id: str = Field(examples=["org_3k9x2m7c1v8b4n6q"])
    name: str = Field(examples=["City clinic"])
    created_at: datetime


class ApiKeyCreate(_Request):
    """A new API key. A viewer reads, an operator also runs workers and federations, an owner may do everything."""

    name: Name = Field(examples=["laptop of the data team"])
    role: Literal["owner", "operator", "viewer"] = "operator"
    expires_at: Time | None = Field(
        default=None, description="in the future, at most ten years from now; null: valid until it is revoked"
    )


class ApiKeyResponse(_Response):
    """An API key, without its secret."""

    id: str = Field(examples=["key_3k9x2m7c1v8b4n6q"])
    organization_id: str | None
    name: str
    role: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class ApiKeyCreated(ApiKeyResponse):
    """A new API key. `key` is shown once and stored as a hash; null if the response is repeated."""

    key: Annotated[str | None, ShownOnce()] = Field(examples=["flk_key_3k9x2m7c1v8b4n6q_5c1f…"])
    secret_shown: bool = False


class EnrollmentTokenCreate(_Request):
    """A new enrollment token. Up to `max_uses` workers can enroll with it before it expires."""

    name: Name = Field(default="enrollment", examples=["machines in the basement"])
    max_uses: int = Field(default=1, ge=1, le=10_000)
    expires_in_seconds: float = Field(default=_WEEK_SECONDS, gt=0, le=MAX_TOKEN_SECONDS)


class EnrollmentTokenResponse(_Response):
    """An enrollment token, without its secret."""

    id: str = Field(examples=["tok_3k9x2m7c1v8b4n6q"])
    organization_id: str
    name: str
    max_uses: int
    uses: int
    expires_at: datetime
    created_at: datetime
    revoked_at: datetime | None


class EnrollmentTokenCreated(EnrollmentTokenResponse):
    """A new enrollment token. `token` is shown once and stored as a hash; null if the response is repeated."""

    token: Annotated[str | None, ShownOnce()] = Field(examples=["fle_tok_3k9x2m7c1v8b4n6q_9a0e…"])
    secret_shown: bool = False


class AuditEntryResponse(_Response):
    """An audit entry. `hash` is the SHA-256 of the other fields, exactly as given here, in canonical JSON."""

    chain: str = Field(examples=["org_3k9x2m7c1v8b4n6q"], description="an organization's id, or `installation`")
    number: int = Field(description="from 1, without gaps")
    at: str = Field(examples=["2026-03-01T09:30:00.000000Z"], json_schema_extra={"format": "date-time"})
    by: str = Field(examples=["key_3k9x2m7c1v8b4n6q"], description="id of a key or a worker, or `coordinator`")
    action: str = Field(examples=["federation.started"])
    target: str = Field(examples=["fed_5f1k2m3n4p5q6r7s"])
    organizations: list[str] = Field(
        description="ids of all affected organizations; the chain of each has this entry"
    )
    details: dict[str, Any]
    previous_hash: str = Field(description="hash of the previous entry; 64 zeros in the first one")
    hash: str


class Deeds(_Response):
    """Contributions of an organization. Updates count train jobs, including preparation; bytes count all jobs.

    Examples, seconds and bytes are those that the workers reported with their results.
    """

    rounds: int = Field(default=0, description="training rounds with an accepted update")
    examples: int = Field(
        default=0, description="training examples, summed over the accepted updates of these rounds"
    )
    download_bytes: int = 0
    upload_bytes: int = 0
    training_seconds: float = Field(default=0.0, description="of all submitted train jobs, including rejected ones")
    updates_accepted: int = 0
    updates_rejected: int = Field(default=0, description="refused by the coordinator's checks")
    updates_failed: int = Field(default=0, description="failed on the worker")
    updates_declined: int = Field(default=0, description="refused by the policy of a node's owner")
    updates_expired: int = Field(default=0, description="lost with their lease")


class LedgerEntryResponse(Deeds):
    """Contributions of an organization to one federation, which may be deleted."""

    federation_id: str = Field(examples=["fed_5f1k2m3n4p5q6r7s"])
    federation_name: str
    deleted_at: datetime | None = None


class Ledger(Listing[LedgerEntryResponse]):
    """Contributions by federation, and their total."""

    total: Deeds
