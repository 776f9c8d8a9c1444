"""Messages of a job: lease, progress, submission and failure."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Field, model_validator

from federated.bounds import MAX_LARGE, MAX_SMALL, Amount, LongText, MetricName, Seconds, ShortText
from federated.failures import CODE_PATTERN, FailureFacts, sentence
from federated.names import NormalText
from federated.protocol.responses import ArtifactReference, BootId, Digest, Pause, ProtocolResponse
from federated.task import BaseModelReference, Labels, TaskDefinition
from federated.trainable import Lora, ModelFacts, Plain, Trainable

MAX_METRICS = 64
MAX_METRIC = 1e9

Metrics = Annotated[dict[MetricName, float], Field(max_length=MAX_METRICS)]
FailureCode = Annotated[str, Field(pattern=CODE_PATTERN)]

JobKind = Literal["describe", "train", "evaluate"]
RoundKind = Literal["prepare", "train"]
ROUND_KINDS: Final[tuple[RoundKind, ...]] = get_args(RoundKind)


def is_metric(value: float) -> bool:
    """Whether a number is a valid metric: finite, and small enough to be summed."""
    return abs(value) <= MAX_METRIC


class Work(ProtocolResponse):
    """The part of a federation's definition that a worker needs to run its jobs."""

    task: TaskDefinition
    base_model: BaseModelReference
    trainable: Trainable = Field(default_factory=Lora)
    algorithm: str
    algorithm_revision: int
    config: dict[str, Any]
    federation_seed: int
    rounds: int


class LeaseRequest(Plain):
    """`POST /v1/jobs/lease`: waits up to `wait_seconds` for an offer. 204 if there is none."""

    boot_id: BootId
    wait_seconds: float = Field(default=20.0, ge=0, le=30, examples=[20])


class MemoryReference(ProtocolResponse):
    """The memory that a job starts from: what this client stored in the round of its last accepted update."""

    round_number: int
    digest: Digest


class Lease(ProtocolResponse):
    """A job assigned to a worker until `expires_at`. The worker renews it every `lease_seconds / 3`."""

    job_id: str
    kind: JobKind
    attempt: int
    federation_id: str
    federation_name: NormalText
    owner_name: NormalText = Field(default="", description="of the organization that owns the federation")
    client_id: str
    ordinal: int | None
    dataset: NormalText
    settings: dict[str, Any] = Field(default_factory=dict)
    round_number: int | None
    round_kind: RoundKind | None
    work: Work
    seed: int
    views: tuple[Literal["shared", "own"], ...] = Field(default=("shared",), max_length=2)
    instruction: ArtifactReference | None
    memory: MemoryReference | None
    lease_seconds: Pause
    expires_at: datetime


class JobProgress(Plain):
    done: Amount
    total: Amount
    metrics: Metrics = Field(default_factory=dict)


class RenewRequest(Plain):
    """`POST /v1/jobs/{id}/renew`. 409 if the job no longer belongs to this worker."""

    boot_id: BootId
    progress: JobProgress | None = Field(
        default=None, examples=[{"done": 12, "total": 20, "metrics": {"train_loss": 0.5}}]
    )


class RenewResponse(ProtocolResponse):
    expires_at: datetime


class Description(Plain):
    """Result of a describe job: the model's facts, the number of examples, and the labels that occur."""

    model: ModelFacts
    examples: int = Field(ge=1, le=MAX_SMALL)
    evaluation_examples: int = Field(ge=0, le=MAX_SMALL)
    labels: Labels = ()


class UpdateSubmission(Plain):
    """Result of a train job. Its artifact is uploaded before. The memory stays on the worker."""

    digest: Digest
    weight: float = Field(gt=0, le=MAX_LARGE)
    examples: int = Field(ge=1, le=MAX_SMALL)
    memory_digest: Digest | None = None
    signature: str | None = Field(
        default=None,
        max_length=128,
        description="Ed25519 over `federated.signed_statement.Statement`, base64url; required",
    )


_UPDATE = {
    "digest": "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    "weight": 120.0,
    "examples": 120,
    "signature": "mZk0pYIpBvH8b3Wb1kY6o5sT5m1Cq5V0r1d0T3ZkYw1c8yq0cVq2o0gq5mP8j2h0tq6r1m3v7x9z5b7n2d4fBg",
}


class SubmitRequest(Plain):
    """`POST /v1/jobs/{id}/submit`, idempotent by job and content. Has one of description, update, evaluation."""

    description: Description | None = None
    update: UpdateSubmission | None = Field(default=None, examples=[_UPDATE])
    evaluation: Annotated[dict[Literal["shared", "own"], Metrics], Field(max_length=2)] | None = None
    metrics: Metrics = Field(default_factory=dict, examples=[{"train_loss": 0.41}])
    seconds: dict[MetricName, Seconds] = Field(default_factory=dict, max_length=16, description="by phase")
    download_bytes: Amount = 0
    upload_bytes: Amount = 0
    not_reproducible: tuple[LongText, ...] = Field(default=(), max_length=16, fail_fast=True)
    environment: dict[ShortText, LongText] = Field(default_factory=dict, max_length=16)

    @model_validator(mode="after")
    def _exactly_one(self) -> "SubmitRequest":
        if sum(part is not None for part in (self.description, self.update, self.evaluation)) != 1:
            raise ValueError("exactly one of description, update, evaluation must be set")
        return self


# Code of a job that an agent returns because it is shutting down. This does not count as an attempt of the job.
AGENT_STOPPING = "agent_stopping"
DISK_FULL = "disk_full"
ARTIFACT_DAMAGED = "artifact_damaged"


class _Failure(Plain):
    """Report of a failure. It contains no text from the node: `detail`, which older agents send, is ignored."""

    boot_id: BootId
    code: FailureCode
    facts: FailureFacts = FailureFacts()
    detail: str = Field(default="", max_length=2000, deprecated=True, description="ignored", exclude=True)

    @property
    def sentence(self) -> str:
        """The failure as a sentence for users."""
        return sentence(self.code, self.facts)


class FailRequest(_Failure):
    """`POST /v1/jobs/{id}/fail`. The job is offered again after a transient failure only."""

    code: FailureCode = Field(examples=["out_of_memory"])
    facts: FailureFacts = Field(default=FailureFacts(), examples=[{"reference": "9f3c01de"}])
    transient: bool = Field(examples=[False])


class DeclineRequest(_Failure):
    """`POST /v1/jobs/{id}/decline`: the node's policy refuses the job. The federation's owner sees the reason."""

    code: FailureCode = Field(examples=["data_unknown_label"])
    facts: FailureFacts = Field(
        default=FailureFacts(),
        examples=[{"dataset": "tickets", "column": "label", "count": 3, "of": 40, "reference": "9f3c01de"}],
    )


class JobResponse(ProtocolResponse):
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
