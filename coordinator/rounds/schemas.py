"""Answers about rounds, and the values that `service` and `conductor` hand each other through the tasks."""

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
    """A client whose accepted update was not aggregated, and why: `norm_outlier`, `not_finite` or `base_differs`."""

    ordinal: int
    reason: str = Field(examples=["norm_outlier"])


class RoundResponse(ProtocolResponse):
    """One attempt at a round: what it waits for and since when, or how it ended and what it measured.

    `accepted` are the ordinals whose update counts, those of earlier attempts included. `left_out` are those whose
    update was accepted and then did not fit the others'. `not_evaluated` are those of the cohort whose nodes have too
    few held-out examples for a metric.
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


# ---- what a conductor is given


@dataclass(frozen=True, slots=True)
class Method:
    """The federation's algorithm as JSON values, and which round it works for."""

    algorithm: str
    config: Mapping[str, Any]
    trainable: Mapping[str, Any]
    model: Mapping[str, Any]
    seed: int
    number: int
    kind: str
    rounds: int
    registered: int


@dataclass(frozen=True, slots=True)
class StartInput:
    """`initial_digest` names an earlier adapter's tensors file, `initial_config_digest` its configuration."""

    method: Method
    initial_digest: str | None
    initial_config_digest: str | None = None


@dataclass(frozen=True, slots=True)
class ClientInput:
    """A drawn client; `note_digest` names what the server remembers of it."""

    ordinal: int
    name: str
    examples: int
    capabilities: Mapping[str, Any]
    settings: Mapping[str, Any]
    note_digest: str | None
    rounds_taken: int


@dataclass(frozen=True, slots=True)
class PlanInput:
    """Instructions for these clients from this state."""

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
    """An accepted update; `norm` is what its check measured."""

    ordinal: int
    examples: int
    weight: float
    digest: str
    metrics: Mapping[str, float]
    note_digest: str | None
    norm: float = 0.0


@dataclass(frozen=True, slots=True)
class AggregateInput:
    """The accepted updates, sorted by ordinal. `card` is what the adapter's model card tells."""

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
    """What the shards of an aggregation made, all of them, in order."""

    whole: AggregateInput
    parts: tuple["MadeShard", ...]


@dataclass(frozen=True, slots=True)
class AgainInput:
    """An aggregation whose results are to be put into the store once more; with `state_digest` the adapter alone."""

    whole: AggregateInput
    state_digest: str | None


Input = StartInput | PlanInput | CheckInput | AggregateInput | ShardInput | JoinInput


# ---- what a conductor made; every artifact is in the store already


@dataclass(frozen=True, slots=True)
class MadeState:
    """A state and the facts of it that steer the rounds: `phase` is the kind of the next one."""

    state: StoredObject
    phase: str
    everybody: bool


@dataclass(frozen=True, slots=True)
class MadePlan:
    """Ordinal -> instruction; equal instructions are one artifact."""

    instructions: Mapping[int, StoredObject]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Job id -> None if the update is accepted, else the problem document that says why not; and its norm."""

    problems: Mapping[str, Mapping[str, Any] | None]
    norms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class MadeAggregate:
    """The next state and what came with it. `adapter_files` by name; empty in a prepare round."""

    state: MadeState
    metrics: Mapping[str, float]
    finished: str | None
    notes: Mapping[int, StoredObject]
    adapter_kind: str | None
    adapter_files: Mapping[str, StoredObject]
    environment: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Omission:
    """Updates without which the rest can be aggregated: ordinal -> the problem document that says why."""

    problems: Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Cut:
    """An aggregation that is better done in parts: the groups of each shard."""

    shards: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class MadeShard:
    """What a shard holds of the next state, and of what comes with it."""

    state: StoredObject
    metrics: Mapping[str, float]
    finished: str | None
    notes: Mapping[int, StoredObject]
    environment: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Failure:
    """A step that cannot be done: the reason (a code) and the words with which its round fails."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Repetition:
    """An aggregation done again.

    `differences`: name ("state" or an adapter's file) of what has other bytes than those kept -> largest difference
    in any tensor, relative to the largest value of the tensor; infinity where the form differs.
    """

    differences: Mapping[str, float]
    environment: Mapping[str, Any]


Result = MadeState | MadePlan | Verdicts | MadeAggregate | Cut | MadeShard | Omission
