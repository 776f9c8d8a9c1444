"""Responses about rounds, and the inputs and results that tasks pass between `service` and `conductor`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import Field

from coordinator.artifacts.service import StoredObject
from federated.protocol import Digest, ProtocolResponse


class AdapterFile(ProtocolResponse):
    """One file of an adapter, downloadable by name."""

    digest: Digest
    size_bytes: int


class AdapterResponse(ProtocolResponse):
    """An aggregated round's adapter. Kind `peft` opens in `peft.PeftModel.from_pretrained`."""

    kind: str
    files: dict[str, AdapterFile]


class LeftOut(ProtocolResponse):
    """A client whose accepted update was not aggregated. Reasons: `norm_outlier`, `not_finite`, `base_differs`."""

    ordinal: int
    reason: str = Field(examples=["norm_outlier"])


class RoundResponse(ProtocolResponse):
    """One attempt at a round, with its present status or with its end and its metrics.

    `accepted` are the ordinals of the clients whose update counts, those of earlier attempts included. `left_out` are
    clients whose update was accepted and then did not fit the others'. `not_evaluated` are clients of the cohort
    whose nodes have too few held-out examples for a metric.
    """

    id: str
    federation_id: str
    kind: str = Field(examples=["train"])
    number: int = Field(examples=[3])
    attempt: int = Field(examples=[1])
    state: str = Field(examples=["collecting"])
    reason: str | None
    reason_detail: str | None
    waiting_for: str | None = Field(examples=["collecting 7/10, 2 training, 1 lost, 95 s left"])
    waiting_since: datetime | None
    cohort: list[int] | None
    accepted: list[int]
    left_out: list[LeftOut] = Field(examples=[[]])
    not_evaluated: list[int]
    start_digest: Digest | None
    state_digest: Digest | None
    adapter: AdapterResponse | None
    metrics: dict[str, Any] = Field(examples=[{"train_loss": 0.41, "loss": 0.44, "accuracy": 0.86}])
    upload_bytes: int
    download_bytes: int
    seconds: dict[str, float]
    not_reproducible: list[str]
    environment: dict[str, Any] | None
    finished: str | None
    late_updates: int
    deadline_at: datetime | None
    evaluation_deadline_at: datetime | None
    opened_at: datetime
    collecting_at: datetime | None
    aggregated_at: datetime | None
    closed_at: datetime | None


# ---- inputs of the conductor


@dataclass(frozen=True, slots=True)
class Method:
    """The federation's algorithm as JSON values, and its round. `client_count`: ready clients at the draw."""

    algorithm: str
    config: Mapping[str, Any]
    trainable: Mapping[str, Any]
    model: Mapping[str, Any]
    seed: int
    number: int
    kind: str
    rounds: int
    client_count: int


@dataclass(frozen=True, slots=True)
class StartInput:
    """`initial_digest` names an earlier adapter's tensors file, `initial_config_digest` its configuration."""

    method: Method
    initial_digest: str | None
    initial_config_digest: str | None = None


@dataclass(frozen=True, slots=True)
class ClientInput:
    """A drawn client. `note_digest` names the server's note about it."""

    ordinal: int
    name: str
    examples: int
    capabilities: Mapping[str, Any]
    settings: Mapping[str, Any]
    note_digest: str | None
    rounds_taken: int


@dataclass(frozen=True, slots=True)
class PlanInput:
    """The clients that need instructions, and the state to make them from."""

    method: Method
    state_digest: str
    clients: tuple[ClientInput, ...]


@dataclass(frozen=True, slots=True)
class CheckInput:
    """Submitted updates: job id, digest of its instruction, digest of its update."""

    method: Method
    updates: tuple[tuple[str, str, str], ...]
    max_update_norm: float | None


@dataclass(frozen=True, slots=True)
class UpdateInput:
    """An accepted update, with the `norm` that its check measured."""

    ordinal: int
    examples: int
    weight: float
    digest: str
    metrics: Mapping[str, float]
    note_digest: str | None
    norm: float = 0.0


@dataclass(frozen=True, slots=True)
class AggregateInput:
    """The accepted updates, sorted by ordinal. `card`: facts for the adapter's model card."""

    method: Method
    state_digest: str
    updates: tuple[UpdateInput, ...]
    base_model: str
    card: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ShardInput:
    """A part of an aggregation: the tensors of these groups."""

    whole: AggregateInput
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JoinInput:
    """The results of all shards of an aggregation, in order."""

    whole: AggregateInput
    parts: tuple["ShardResult", ...]


@dataclass(frozen=True, slots=True)
class RestoreInput:
    """An aggregation whose results have to be stored again. With `state_digest` only its adapter has to."""

    whole: AggregateInput
    state_digest: str | None


Input = StartInput | PlanInput | CheckInput | AggregateInput | ShardInput | JoinInput


# ---- results of the conductor; every artifact is in the store already


@dataclass(frozen=True, slots=True)
class StateResult:
    """A state, with its facts that control the rounds: `phase` is the kind of the next one."""

    state: StoredObject
    phase: str
    everybody: bool


@dataclass(frozen=True, slots=True)
class PlanResult:
    """Ordinal -> instruction; equal instructions are one artifact."""

    instructions: Mapping[int, StoredObject]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """By job id: the problem document of a rejected update or None, and the norm of an accepted one."""

    problems: Mapping[str, Mapping[str, Any] | None]
    norms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class AggregateResult:
    """The next state and what belongs to it. `adapter_files`: by name, empty in a prepare round."""

    state: StateResult
    metrics: Mapping[str, float]
    finished: str | None
    notes: Mapping[int, StoredObject]
    adapter_kind: str | None
    adapter_files: Mapping[str, StoredObject]
    environment: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Omission:
    """Updates without which the rest can be aggregated: ordinal -> problem document with the reason."""

    problems: Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """The shards of an aggregation that is too large for one step: the groups of each."""

    shards: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class ShardResult:
    """A shard's part of the next state, and of what belongs to it."""

    state: StoredObject
    metrics: Mapping[str, float]
    finished: str | None
    notes: Mapping[int, StoredObject]
    environment: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Failure:
    """The failure of a step: the reason (a code) and the text with which its round fails."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Repetition:
    """The comparison of a repeated aggregation with the stored one.

    `differences`: name ("state" or an adapter's file) of each file with other bytes -> largest difference in any
    tensor, relative to the largest value of the tensor. Infinity for another form.
    """

    differences: Mapping[str, float]
    environment: Mapping[str, Any]


Result = StateResult | PlanResult | Verdicts | AggregateResult | ShardLayout | ShardResult | Omission
