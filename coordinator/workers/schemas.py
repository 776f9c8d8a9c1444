"""Responses about workers. The models of enrollment and heartbeat are in `federated.protocol`."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from federated.protocol import Capabilities


class WorkerResponse(BaseModel):
    """A worker. `silent`: no heartbeat for `worker_timeout_seconds`, or none at all."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(examples=["wkr_3k9x2m7c1v8b4n6q"])
    organization_id: str
    name: str
    state: Literal["alive", "silent", "revoked"]
    capabilities: Capabilities
    last_seen_at: datetime | None
    created_at: datetime
    revoked_at: datetime | None
    doubled_at: datetime | None = Field(
        description="last heartbeat of a second agent with this worker's key, which was refused; null after a new key"
    )


class OwnWorkerResponse(WorkerResponse):
    """The calling worker. `store_origins`: stores that it may contact directly; empty without presigned URLs."""

    store_origins: tuple[str, ...] = Field(examples=[["https://s3.example.org"]])
