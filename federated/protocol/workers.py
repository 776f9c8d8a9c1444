"""Messages of a worker about itself: enrollment, keys, heartbeat."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from federated.bounds import MAX_SMALL, Amount, Count, LongText, ShortText
from federated.names import Name
from federated.protocol.responses import BootId, Pause, ProtocolResponse
from federated.task import Task
from federated.trainable import Plain

PROTOCOL_VERSION = 1
MAX_ENROLLMENT_BYTES = 16_384
"""Limit of the enrollment request's body, which an unauthenticated sender may send."""
MAX_OFFERED = 1024
"""Largest number of data sets, and of models, that one worker may offer."""
WORKER_DOUBLED = "worker_doubled"
"""Problem code for an agent that another agent with the same key has replaced."""

PublicKey = Annotated[
    str,
    Field(
        min_length=40,
        max_length=64,
        description="Ed25519, raw 32 bytes, base64url",
        examples=["1xfbpfHb7ycZO8hOoGWJtgcbeEFvhSUyEBV5UUiYmLA"],
    ),
]

_PROOF_EXAMPLE = "VYw1p4YH0sI2g3tEo0l8V1n7cJ0bqkq2m6m4H8oXh1pQb0k8x0y3oZqk4w6h2r5jv9bq1mTtZr2m8J0cQ1dUAg"


class DatasetFacts(Plain):
    """A data set that a worker offers."""

    name: Name
    task: Task | None = None


class Capabilities(Plain):
    """Capabilities of a worker. Sent at enrollment and with each heartbeat."""

    protocol_version: Count = PROTOCOL_VERSION
    agent_version: ShortText = ""
    algorithms: dict[ShortText, Count] = Field(default_factory=dict, max_length=256, description="name -> revision")
    datasets: tuple[DatasetFacts, ...] = Field(default=(), max_length=MAX_OFFERED, fail_fast=True)
    models: tuple[LongText, ...] = Field(default=(), max_length=MAX_OFFERED, fail_fast=True)
    slots: int = Field(default=1, ge=1, le=64)
    device: ShortText = "cpu"
    device_name: LongText | None = None
    memory_bytes: Amount | None = Field(default=None, description="of one device, or of the host without one")
    free_memory_bytes: Amount | None = Field(
        default=None, description="unused part of memory_bytes when the worker agent started"
    )
    max_rank: int | None = Field(default=None, ge=1, le=MAX_SMALL)
    cpu_flags: tuple[ShortText, ...] = Field(default=(), max_length=256, fail_fast=True)
    versions: dict[ShortText, LongText] = Field(default_factory=dict, max_length=256)


class CoordinatorVersion(ProtocolResponse):
    """`GET /version`: the versions of the service and of the protocol that it speaks."""

    version: ShortText
    protocol_version: Count


class EnrollRequest(Plain):
    """`POST /v1/workers/enroll`, authorized by the enrollment token alone."""

    token: str = Field(min_length=8, max_length=256, examples=["fle_tok_3k9x2m7c1v8b4n6q_9a0e"])
    name: Name = Field(examples=["gpu-1"])
    public_key: PublicKey
    proof: str | None = Field(
        default=None,
        max_length=128,
        description="Ed25519 by `public_key` over `federated.signed_statement.enrollment_message`, base64url",
        examples=[_PROOF_EXAMPLE],
    )
    capabilities: Capabilities = Field(default_factory=Capabilities)


class EnrollResponse(ProtocolResponse):
    worker_id: str
    organization_id: str
    organization_name: str
    heartbeat_seconds: Pause


class RotateKeyRequest(Plain):
    """`POST /v1/workers/me/key`, authorized by the key that it replaces."""

    public_key: PublicKey
    proof: str | None = Field(
        default=None,
        max_length=128,
        description="Ed25519 by `public_key` over `federated.signed_statement.rotation_message`, base64url",
        examples=[_PROOF_EXAMPLE],
    )


class RotateKeyResponse(ProtocolResponse):
    key_id: str


class OwnWorker(ProtocolResponse):
    """The part of `GET /v1/workers/me` that agents read. `store_origins`: object stores used for direct transfers."""

    id: str
    store_origins: tuple[str, ...] = ()
    doubled_at: datetime | None = None


class HeartbeatRequest(Plain):
    """`POST /v1/workers/me/heartbeat`: reports that the worker is alive, and its capabilities."""

    boot_id: BootId
    capabilities: Capabilities | None = None


class HeartbeatResponse(ProtocolResponse):
    """`doubled_at`: time of the last rejected request (409 `worker_doubled`) by another agent with this key."""

    server_time: datetime
    heartbeat_seconds: Pause
    doubled_at: datetime | None = None
