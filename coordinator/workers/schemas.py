"""What the API says of a worker; enrolment and heartbeat are `federated.protocol`'s."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from federated.protocol import Capabilities


class WorkerResponse(BaseModel):
    """A worker. `silent`: nothing was heard of it for `worker_timeout_seconds`, or ever."""

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
        description="when a second agent with this worker's key was heard last, and refused; null after a new key"
    )


class OwnWorkerResponse(WorkerResponse):
    """The worker that asks. `store_origins`: where transfers go that do not pass the coordinator; none if all do."""

    store_origins: tuple[str, ...] = Field(examples=[["https://s3.example.org"]])
