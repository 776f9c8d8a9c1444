"""Requests and responses of the webhook endpoints."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from coordinator.events import FILTERS
from coordinator.web.routes import ShownOnce

DeliveryState = Literal["pending", "delivered", "failed"]
_EXAMPLE_TIME = "2026-03-01T09:30:00Z"


def _check_filter(name: str) -> str:
    if name not in FILTERS:
        raise ValueError(f"is not an event; available: {', '.join(sorted(FILTERS))}")
    return name


EventFilter = Annotated[str, AfterValidator(_check_filter), Field(json_schema_extra={"enum": sorted(FILTERS)})]


class WebhookCreate(BaseModel):
    """A URL and the events sent to it, from all federations that the organization owns, is invited to or is in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(max_length=2048, pattern="^https?://", examples=["https://hooks.example.org/fedloom"])
    events: tuple[EventFilter, ...] = Field(
        default=("*",), min_length=1, max_length=len(FILTERS), examples=[["round.closed", "federation.*"]]
    )


class _Response(BaseModel):
    model_config = ConfigDict(from_attributes=True, frozen=True)


class WebhookResponse(_Response):
    """A webhook, without its secret. After a connection failure nothing is sent until `paused_until`."""

    id: str = Field(examples=["whk_3k9x2m7c1v8b4n6q"])
    organization_id: str = Field(examples=["org_3k9x2m7c1v8b4n6q"])
    url: str = Field(examples=["https://hooks.example.org/fedloom"])
    events: list[str] = Field(examples=[["round.closed", "federation.*"]])
    created_at: datetime = Field(examples=[_EXAMPLE_TIME])
    paused_until: datetime | None = None


class WebhookCreated(WebhookResponse):
    """A new webhook. `secret` is shown once; null if the response is repeated."""

    secret: Annotated[str | None, ShownOnce()] = Field(examples=["whsec_XB8f…"])
    secret_shown: bool = False


class DeliveryResponse(_Response):
    """A message to a webhook. If `pending`, it is sent at `next_attempt_at`; if `failed`, it is not retried."""

    id: str = Field(examples=["dlv_3k9x2m7c1v8b4n6q"])
    webhook_id: str = Field(examples=["whk_3k9x2m7c1v8b4n6q"])
    federation_id: str = Field(examples=["fed_5f1k2m3n4p5q6r7s"])
    event: str = Field(examples=["round.closed"])
    state: DeliveryState = Field(examples=["delivered"])
    attempts: int = Field(examples=[1])
    last_status: int | None = Field(examples=[204], description="HTTP status of the last attempt with a response")
    last_error: str | None = Field(examples=[None], description="why the last attempt failed")
    next_attempt_at: datetime | None = Field(examples=[None])
    created_at: datetime = Field(examples=[_EXAMPLE_TIME])
    ended_at: datetime | None = Field(examples=[_EXAMPLE_TIME])
