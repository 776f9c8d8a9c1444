"""HTTP messages between coordinator and worker agent, as pydantic models, and what they share with users' requests.

Requests refuse unknown fields; answers are read leniently (`Answer`), so that an older agent meets a newer
coordinator. A change that an older side would misread raises PROTOCOL_VERSION.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from federated.task import BaseModelReference as BaseModelReference
from federated.task import Cloze as Cloze
from federated.task import Metric as Metric
from federated.task import Name as Name
from federated.task import Task as Task
from federated.task import TaskDefinition as TaskDefinition
from federated.task import TextTemplate as TextTemplate
from federated.trainable import Lora, ModelFacts, Plain, Trainable

PROTOCOL_VERSION = 1
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"

Digest = Annotated[str, Field(pattern=DIGEST_PATTERN)]
JobKind = Literal["describe", "train", "evaluate"]
RoundKind = Literal["prepare", "train"]


class Answer(BaseModel):
    """Base of answers: frozen, unknown fields ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


# ---- the federation, as its workers see it


class Work(Answer):
    """All a worker needs to know of a federation to do one of its jobs."""

    task: TaskDefinition
    base_model: BaseModelReference
    trainable: Trainable = Field(default_factory=Lora)
    algorithm: str
    algorithm_revision: int
    config: dict[str, Any]
    federation_seed: int
    rounds: int


# ---- enrolment and heartbeat


class DatasetFacts(Plain):
    """A data set a worker offers, by name."""

    name: Name
    task: Task | None = None


class Capabilities(Plain):
    """What a worker can do. Sent at enrolment and with each heartbeat."""

    protocol_version: int = PROTOCOL_VERSION
    agent_version: str = ""
    algorithms: dict[str, int] = Field(default_factory=dict, description="name -> revision")
    datasets: tuple[DatasetFacts, ...] = ()
    models: tuple[str, ...] = ()
    slots: int = Field(default=1, ge=1, le=64)
    device: str = "cpu"
    device_name: str | None = None
    memory_bytes: int | None = Field(default=None, ge=0, description="of one device, or of the host without one")
    free_memory_bytes: int | None = Field(
        default=None, ge=0, description="of memory_bytes, those that nobody used when the worker agent started"
    )
    max_rank: int | None = Field(default=None, ge=1)
    cpu_flags: tuple[str, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)


class EnrollRequest(Plain):
    """`POST /v1/workers/enroll`, authorised by the enrolment token alone."""

    token: str = Field(min_length=8, max_length=256)
    name: Name
    public_key: str = Field(min_length=40, max_length=64, description="Ed25519, raw 32 bytes, base64url")
    capabilities: Capabilities = Field(default_factory=Capabilities)


class EnrollAnswer(Answer):
    worker_id: str
    organization_id: str
    organization_name: str
    heartbeat_seconds: float


class RotateKeyRequest(Plain):
    """`POST /v1/workers/me/key`, signed with the key that it replaces."""

    public_key: str = Field(min_length=40, max_length=64, description="Ed25519, raw 32 bytes, base64url")


class RotateKeyAnswer(Answer):
    key_id: str


class HeartbeatRequest(Plain):
    """`POST /v1/workers/me/heartbeat`: the worker is there, and what it can."""

    boot_id: str = Field(min_length=8, max_length=64)
    capabilities: Capabilities | None = None


class HeartbeatAnswer(Answer):
    server_time: datetime
    heartbeat_seconds: float


# ---- jobs


class LeaseRequest(Plain):
    """`POST /v1/jobs/lease`: waits up to `wait_seconds` for an offer; 204 if there is none."""

    boot_id: str = Field(min_length=8, max_length=64)
    wait_seconds: float = Field(default=20.0, ge=0, le=30)


class ArtifactReference(Answer):
    digest: Digest
    size_bytes: int


class MemoryReference(Answer):
    """The memory a job starts from: what this client kept after the round whose update was accepted last."""

    round_number: int
    digest: Digest


class Lease(Answer):
    """A job handed to a worker until `expires_at`; renewed every `lease_seconds / 3`."""

    job_id: str
    kind: JobKind
    attempt: int
    federation_id: str
    federation_name: str
    owner_name: str = Field(default="", description="of the organisation that owns the federation")
    client_id: str
    ordinal: int | None
    dataset: str
    settings: dict[str, Any] = Field(default_factory=dict)
    round_number: int | None
    round_kind: RoundKind | None
    work: Work
    seed: int
    views: tuple[Literal["shared", "own"], ...] = ("shared",)
    instruction: ArtifactReference | None
    memory: MemoryReference | None
    lease_seconds: float
    expires_at: datetime


class JobProgress(Plain):
    done: int = Field(ge=0)
    total: int = Field(ge=0)
    metrics: dict[str, float] = Field(default_factory=dict, max_length=64)


class RenewRequest(Plain):
    """`POST /v1/jobs/{id}/renew`. A 409 says that the job is no longer this worker's."""

    boot_id: str = Field(min_length=8, max_length=64)
    progress: JobProgress | None = None


class RenewAnswer(Answer):
    expires_at: datetime


class Description(Plain):
    """What a describe job found: the model's facts, how many examples, which labels occur."""

    model: ModelFacts
    examples: int = Field(ge=1)
    evaluation_examples: int = Field(ge=0)
    labels: tuple[str, ...] = ()


class UpdateSubmission(Plain):
    """What a train job made. The artifact was uploaded before; `memory` stays on the worker."""

    digest: Digest
    weight: float = Field(gt=0)
    examples: int = Field(ge=1)
    memory_digest: Digest | None = None
    signature: str | None = Field(
        default=None,
        max_length=128,
        description="Ed25519 over `federated.statement.Statement`, base64url; no update is taken without",
    )


class SubmitRequest(Plain):
    """`POST /v1/jobs/{id}/submit`; idempotent by job and content. One of description, update, evaluation."""

    description: Description | None = None
    update: UpdateSubmission | None = None
    evaluation: dict[Literal["shared", "own"], dict[str, float]] | None = None
    metrics: dict[str, float] = Field(default_factory=dict, max_length=64)
    seconds: dict[str, float] = Field(default_factory=dict, max_length=16, description="by phase")
    download_bytes: int = Field(default=0, ge=0)
    upload_bytes: int = Field(default=0, ge=0)
    not_reproducible: tuple[str, ...] = Field(default=(), max_length=16)
    environment: dict[str, str] = Field(default_factory=dict, max_length=16)

    @model_validator(mode="after")
    def _exactly_one(self) -> "SubmitRequest":
        if sum(part is not None for part in (self.description, self.update, self.evaluation)) != 1:
            raise ValueError("exactly one of description, update, evaluation must be given")
        return self


# The code of a job that an agent gives back because it was told to stop: that costs the job no attempt.
AGENT_STOPPING = "agent_stopping"


class FailRequest(Plain):
    """`POST /v1/jobs/{id}/fail`. A transient failure is offered again; a final one is not."""

    boot_id: str = Field(min_length=8, max_length=64)
    code: str = Field(pattern=r"^[a-z0-9_]{1,64}$")
    detail: str = Field(max_length=2000)
    transient: bool


class DeclineRequest(Plain):
    """`POST /v1/jobs/{id}/decline`: this node's policy refuses; the reason is shown to the federation's owner."""

    boot_id: str = Field(min_length=8, max_length=64)
    code: str = Field(pattern=r"^[a-z0-9_]{1,64}$")
    detail: str = Field(max_length=2000)


class JobAnswer(Answer):
    """A job as its worker and the owners see it. `problem` says why it was rejected, failed or declined."""

    id: str
    kind: JobKind
    state: str
    federation_id: str
    client_id: str
    ordinal: int | None = None
    round_number: int | None = None
    attempt: int = 1
    progress: JobProgress | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    upload_bytes: int = 0
    download_bytes: int = 0
    problem: dict[str, Any] | None = None
    offered_at: datetime | None = None
    leased_at: datetime | None = None
    submitted_at: datetime | None = None


# ---- artifacts


class UploadRequest(Plain):
    """`POST /v1/artifacts/uploads`: announces an upload; chunks follow by `PUT .../chunks/{index}`."""

    size_bytes: int = Field(ge=1)
    digest: Digest


class UploadAnswer(Answer):
    """`chunks_present` lists the chunk indices the coordinator has; a finished upload has `artifact`."""

    upload_id: str
    chunk_bytes: int
    chunks: int
    chunks_present: tuple[int, ...]
    state: Literal["open", "assembling", "complete", "failed"]
    artifact: ArtifactReference | None = None
    problem: dict[str, Any] | None = None


class Problem(Answer):
    """RFC 9457 `application/problem+json`. `errors` name bad fields by JSON pointer."""

    type: str = "about:blank"
    title: str
    status: int
    code: str = ""
    detail: str = ""
    errors: list[dict[str, Any]] = Field(default_factory=list)
    tensor: str | None = None
