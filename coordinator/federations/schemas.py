"""Requests and responses of the federation endpoints."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from coordinator.models import Event
from federated.bounds import MAX_LARGE, MAX_NORM, FreeForm
from federated.protocol import BaseModelReference, Name, ProtocolResponse, TaskDefinition
from federated.trainable import Lora, Plain, Trainable

MAX_FIELDS = 64
MAX_FIELD_NAME = 128
_DAY_SECONDS = 24 * 3600.0
_YEAR_SECONDS = 366 * _DAY_SECONDS


class Evaluation(Plain):
    """Evaluation of the shared model: how often, and by which clients."""

    every: int | None = Field(
        default=1,
        ge=1,
        le=100_000,
        description="in rounds; also after the last round; null: never",
    )
    who: Literal["cohort", "all"] = "cohort"


class Stopping(Plain):
    """Ends the federation before its last round: at `target`, or `patience` rounds after the best value."""

    metric: str | None = Field(
        default=None,
        max_length=64,
        examples=["accuracy"],
        description="loss or a metric of the task; own_… for personal models, if the algorithm trains them",
    )
    target: float | None = Field(default=None, ge=-MAX_NORM, le=MAX_NORM, allow_inf_nan=False)
    patience: int | None = Field(default=None, ge=1, le=100_000)

    @model_validator(mode="after")
    def _needs_a_metric(self) -> "Stopping":
        if self.metric is None and (self.target is not None or self.patience is not None):
            raise ValueError("target and patience need the name of a metric")
        return self


class Retention(Plain):
    """Number of rounds whose updates and states are kept. Adapters and every tenth round's state are always kept."""

    keep_updates_rounds: int = Field(default=2, ge=1, le=100_000)
    keep_states_rounds: int = Field(default=10, ge=1, le=100_000)


class InitialAdapter(Plain):
    """The adapter of an earlier federation from which this one continues. `round` null: its newest round."""

    federation_id: str = Field(max_length=64, examples=["fed_5f1k2m3n4p5q6r7s"])
    round: int | None = Field(default=None, ge=1, le=100_000)


class Definition(Plain):
    """The whole definition of a federation. Every number is bounded; durations are in seconds."""

    task: TaskDefinition
    base_model: BaseModelReference
    trainable: Trainable = Field(default_factory=Lora)
    algorithm: str = Field(max_length=64, description="a name from `GET /v1/algorithms`")
    config: FreeForm = Field(default_factory=dict, description="settings of the algorithm; see its config_schema")
    rounds: int = Field(default=10, ge=1, le=100_000)
    clients_per_round: int = Field(default=2, ge=1, le=100_000)
    min_clients: int | None = Field(default=None, ge=1, le=100_000, description="null: clients_per_round")
    over_selection: int = Field(default=0, ge=0, le=100_000, description="drawn in addition to clients_per_round")
    round_deadline_seconds: float = Field(default=3600.0, gt=0, le=_YEAR_SECONDS)
    prepare_deadline_seconds: float = Field(default=3600.0, gt=0, le=_YEAR_SECONDS)
    evaluation_deadline_seconds: float = Field(default=600.0, gt=0, le=_YEAR_SECONDS)
    wait_for_clients_seconds: float = Field(default=600.0, gt=0, le=_YEAR_SECONDS)
    max_round_retries: int = Field(default=3, ge=0, le=1000)
    lease_seconds: float = Field(default=60.0, ge=1, le=_DAY_SECONDS)
    max_attempts: int = Field(default=3, ge=1, le=100)
    max_update_norm: float | None = Field(
        default=None, gt=0, le=MAX_NORM, allow_inf_nan=False, description="largest L2 norm of an update"
    )
    seed: int | None = Field(default=None, ge=0, le=MAX_LARGE, description="null: drawn on creation")
    evaluation: Evaluation = Field(default_factory=Evaluation)
    stopping: Stopping = Field(default_factory=Stopping)
    retention: Retention = Field(default_factory=Retention)
    initial_adapter: InitialAdapter | None = None

    @field_validator("min_clients")
    @classmethod
    def _quorum_within_the_cohort(cls, value: int | None, info: ValidationInfo) -> int | None:
        cohort = info.data.get("clients_per_round")
        if value is not None and cohort is not None and value > cohort:
            raise ValueError(f"is {value}, more than clients_per_round {cohort}")
        return value


class FederationCreate(Definition):
    """A new draft. `organization_id` is only for the installation's admin; other keys use their own organization."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "support messages",
                    "task": {"task": "sequence_classification", "labels": ["billing", "login", "other"]},
                    "base_model": {"id": "minilm"},
                    "trainable": {"kind": "lora", "r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]},
                    "algorithm": "fedavg",
                    "config": {"local_steps": 20, "learning_rate": 0.001},
                    "rounds": 10,
                    "clients_per_round": 3,
                }
            ]
        }
    )

    name: Name
    organization_id: str | None = Field(default=None, max_length=64)


class FederationChange(BaseModel):
    """Fields of a draft to replace, each as a whole; other fields stay. Validated like a new federation."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [{"rounds": 20, "config": {}}],
            "maxProperties": MAX_FIELDS,
            "propertyNames": {"maxLength": MAX_FIELD_NAME},
        },
    )

    @model_validator(mode="after")
    def _few(self) -> "FederationChange":
        if len(self.changes()) > MAX_FIELDS or any(len(name) > MAX_FIELD_NAME for name in self.changes()):
            raise ValueError(f"has more than {MAX_FIELDS} fields, or a name of more than {MAX_FIELD_NAME} characters")
        return self

    def changes(self) -> dict[str, Any]:
        """Field -> new value, not validated."""
        return dict(self.model_extra or {})


class CloneRequest(Plain):
    """A new draft with the same definition. `name` null: the old name and ` copy`."""

    name: Name | None = Field(default=None, examples=["support messages second try"])


class CurrentRound(ProtocolResponse):
    """The newest round."""

    id: str
    kind: str
    number: int
    attempt: int
    state: str


class ClientCounts(ProtocolResponse):
    """Number of clients in each state. `alive`: clients that can be drawn now."""

    registered: int = 0
    ready: int = 0
    alive: int = 0
    out: int = 0
    left: int = 0
    expelled: int = 0


class FederationResponse(ProtocolResponse):
    """A federation, with what it waits for and since when, or how it ended."""

    id: str
    organization_id: str
    name: str
    state: str = Field(examples=["running"])
    reason: str | None = Field(examples=["stopped_rounds"])
    reason_detail: str | None
    waiting_for: str | None = Field(examples=["waiting_for_clients 2/3, 40 s left"])
    waiting_since: datetime | None
    definition: dict[str, Any]
    definition_digest: str = Field(description="of name, owner and whole definition; an organization accepts it")
    seed: int
    round: CurrentRound | None
    rounds_done: int
    clients: ClientCounts
    adapter_round: int | None = Field(description="the newest round whose adapter can be downloaded")
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class EventResponse(ProtocolResponse):
    """An event. Pass its `number` as `after` to list later ones."""

    number: int
    at: datetime
    type: str = Field(examples=["round.closed"])
    data: dict[str, Any]


class EventPage(ProtocolResponse):
    """Events in order. Pass `next_after` as `after` to get the next page."""

    items: list[EventResponse]
    next_after: int


def event_response(event: Event) -> EventResponse:
    return EventResponse(number=event.number, at=event.at, type=event.type, data=event.data)
