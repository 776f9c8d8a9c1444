"""Requests and answers about organizations, API keys and enrollment tokens."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from coordinator.routes import ShownOnce
from federated.protocol import Name

MAX_TOKEN_SECONDS = 366 * 24 * 3600.0
_WEEK_SECONDS = 7 * 24 * 3600.0


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Answer(BaseModel):
    model_config = ConfigDict(from_attributes=True, frozen=True)


class OrganizationCreate(_Request):
    """A new organization. Names are unique in the installation."""

    name: Name = Field(examples=["City clinic"])


class OrganizationAnswer(_Answer):
    """An organization."""

    id: str = Field(examples=["org_3k9x2m7c1v8b4n6q"])
    name: str = Field(examples=["City clinic"])
    created_at: datetime


class ApiKeyCreate(_Request):
    """A new API key. A viewer reads, an operator also runs workers and federations, an owner may do everything."""

    name: Name = Field(examples=["laptop of the data team"])
    role: Literal["owner", "operator", "viewer"] = "operator"


class ApiKeyAnswer(_Answer):
    """An API key, without its secret."""

    id: str = Field(examples=["key_3k9x2m7c1v8b4n6q"])
    organization_id: str | None
    name: str
    role: str
    created_at: datetime
    revoked_at: datetime | None


class ApiKeyCreated(ApiKeyAnswer):
    """A new API key. `key` is shown this once and kept as a hash; null when the answer is given again."""

    key: Annotated[str | None, ShownOnce()] = Field(examples=["flk_key_3k9x2m7c1v8b4n6q_5c1f…"])
    secret_shown: bool = False


class EnrollmentTokenCreate(_Request):
    """A new enrollment token: with it, up to `max_uses` workers enrol before it expires."""

    name: Name = Field(default="enrollment", examples=["machines in the basement"])
    max_uses: int = Field(default=1, ge=1, le=10_000)
    expires_in_seconds: float = Field(default=_WEEK_SECONDS, gt=0, le=MAX_TOKEN_SECONDS)


class EnrollmentTokenAnswer(_Answer):
    """An enrollment token, without its secret."""

    id: str = Field(examples=["tok_3k9x2m7c1v8b4n6q"])
    organization_id: str
    name: str
    max_uses: int
    uses: int
    expires_at: datetime
    created_at: datetime
    revoked_at: datetime | None


class EnrollmentTokenCreated(EnrollmentTokenAnswer):
    """A new enrollment token. `token` is shown this once and kept as a hash; null when the answer is given again."""

    token: Annotated[str | None, ShownOnce()] = Field(examples=["fle_tok_3k9x2m7c1v8b4n6q_9a0e…"])
    secret_shown: bool = False
