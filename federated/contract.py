"""The contract of an algorithm: state in, state out.

An algorithm is a folder with an `ALGORITHM` in its `__init__`, a config, a server half and a client half. Both
halves are created as `Half(config, trainable)` and have no mutable attribute: all persistent state is in payloads.
Torch appears in annotations only, because the web process loads the configs.

Reserved facts of a state are `phase` ("prepare" | "train") and `cohort` ("all"). The reserved fact of an instruction
is `expects`, a table name -> {"dtype", "shape" | "max_shape"}. The web process checks an update's header against it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from federated.bounds import MAX_NORM
from federated.trainable import Full, Lora, ModelFacts, Prefix

if TYPE_CHECKING:
    from torch import Tensor

    from federated.payloads.payload import Payload
    from federated.session import TrainingSession

AnyTrainable = Lora | Prefix | Full
View = Literal["shared", "own"]
Beta = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, slots=True)
class Effort:
    """Upper bounds on the work of one job.

    `steps`: optimizer steps, or the pairs of forward passes that replace them. `passes`: further passes over all the
    client's examples, with or without backward, and the repetitions of a batch larger than the client's data.
    `examples`: rows that contribute to an update, in the round that uses the fewest. None if unknown beforehand.
    """

    steps: int = 0
    passes: float = 0.0
    examples: int | None = None


class AlgorithmConfig(BaseModel):
    """Base of every algorithm's config: frozen, without unknown fields. The API publishes its JSON Schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def check_trainable(self, trainable: AnyTrainable) -> None:
        """Raise ValueError if this config cannot train `trainable`. The caller has checked its kind."""

    def check_served(self) -> None:
        """Raise ValueError for a setting that is for simulations only, because no user could open its result."""

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise ValueError unless a client may register with these `settings`. By default there are none."""
        if settings:
            raise ValueError(f"unknown client setting {min(settings)!r}: this algorithm takes none")

    def largest_rank(self, trainable: AnyTrainable, limit: int | None) -> int:
        """The largest rank for a client whose node allows at most `limit` (None: any). 0 without LoRA factors.

        By default the trainable's rank. An algorithm with a rank for each client overrides it to respect the limit.
        """
        return trainable.largest_rank if isinstance(trainable, Lora) else 0

    def most_effort(self, kind: Literal["prepare", "train"], examples: int) -> Effort | None:
        """Upper bounds on a job for a client with `examples` examples. None: nodes with limits refuse such a job."""
        return None


class GradientConfig(AlgorithmConfig):
    """Settings of the local gradient loop, `algorithm_kit.local_training`. Steps take precedence over epochs."""

    local_steps: int | None = Field(default=None, ge=1, le=1_000_000, description="optimizer steps per round")
    local_epochs: float = Field(default=1.0, gt=0, le=1000, description="used when local_steps is null")
    batch_size: int = Field(default=16, ge=1, le=4096, description="examples per optimizer step")
    micro_batch_size: int | None = Field(
        default=None, ge=1, le=4096, description="examples per forward pass; null: the batch"
    )
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0, le=100)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    momentum: float = Field(default=0.0, ge=0, lt=1, description="of sgd")
    warmup_steps: int = Field(default=0, ge=0, le=1_000_000, description="linear warm-up at the start of each round")
    max_grad_norm: float | None = Field(default=1.0, gt=0, le=MAX_NORM)

    def most_effort(self, kind: Literal["prepare", "train"], examples: int) -> Effort:
        """Upper bounds of the gradient loop."""
        effort = self.effort_of(self.planned_steps(examples), examples)
        return replace(effort, examples=self.lasting_examples(examples))

    def lasting_examples(self, examples: int) -> int:
        """Examples that contribute to an update: all, except those of steps that weight decay shrinks below 1 %."""
        decay = abs(1 - self.learning_rate * self.weight_decay)
        steps = math.inf if decay == 1 else 1 if decay == 0 else math.ceil(math.log(100) / abs(math.log(decay)))
        return int(min(examples, self.examples_to_see(examples), steps * self.batch_size))

    def planned_steps(self, examples: int) -> int:
        """Optimizer steps for a client with `examples` examples. Raises ValueError for 0."""
        return math.ceil(self.examples_to_see(examples) / self.batch_size)

    def examples_to_see(self, examples: int) -> int:
        """Examples in the batches of those steps, repetitions included. Raises ValueError for 0."""
        if examples == 0:
            raise ValueError("there is no example to train on")
        if self.local_steps is not None:
            return self.local_steps * self.batch_size
        # 0.1 epochs of 30 examples are 3 of them, not the 4 that 3.0000000000000004 rounds up to.
        return max(1, math.ceil(self.local_epochs * examples - 1e-9))

    def effort_of(self, steps: int, examples: int) -> Effort:
        """The effort of `steps` steps of `batch_size` examples."""
        return Effort(steps, repeated_passes(steps, self.batch_size, examples))


def repeated_passes(steps: int, batch_size: int, examples: int) -> float:
    """Additional passes over the data of steps whose batch is larger than the data."""
    return steps * max(0.0, batch_size / max(1, examples) - 1)


@dataclass(frozen=True, slots=True)
class RoundFacts:
    """The current round. `rounds` is the federation's planned number, `clients` its current number of clients."""

    number: int
    kind: Literal["prepare", "train", "evaluate"]
    rounds: int
    clients: int


@dataclass(frozen=True, slots=True)
class ClientFacts:
    """A client of the cohort. `settings` are from its registration. `note` is the server's state for this client."""

    ordinal: int
    name: str
    examples: int
    capabilities: Mapping[str, Any]
    settings: Mapping[str, Any]
    note: "Payload | None"
    rounds_taken: int


@dataclass(frozen=True, slots=True)
class ClientUpdate:
    """An accepted update. `payload` and `note` are memory-mapped. 0 < weight <= examples."""

    ordinal: int
    examples: int
    weight: float
    payload: "Payload"
    metrics: Mapping[str, float]
    note: "Payload | None"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The next state. A `stop_reason` ends the federation. `notes` replace those of the same ordinals."""

    state: "Payload"
    metrics: Mapping[str, float] = field(default_factory=dict)
    stop_reason: str | None = None
    notes: "Mapping[int, Payload]" = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientResult:
    """A client half's result. `memory` stays on the worker. `is_measurement`: it has layer statistics only."""

    update: "Payload"
    weight: float
    metrics: Mapping[str, float]
    memory: "Payload | None" = None
    is_measurement: bool = False


@dataclass(frozen=True, slots=True)
class Adapter:
    """The result that users download.

    `tensors` are by canonical name. `config` has the PEFT fields that differ from the trainable's. Kind "peft" opens
    in `peft.PeftModel.from_pretrained`. `federated.merge` applies kind "ledger" to a base model's folder. The facts
    of a ledger name `algorithm`, `weights_digest` and `task_type`.
    """

    kind: Literal["peft", "ledger"]
    tensors: "Mapping[str, Tensor]"
    config: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LedgerWeights:
    """The changes of a ledger to a base model by canonical name. Their tensors are lazy.

    `differences` are added to the base's values in float32 and rounded once. `values` add or replace tensors.
    """

    differences: "Payload"
    values: "Payload"


class LedgerInvalid(ValueError):
    """A ledger that cannot be applied. The message names the fact, tensor or digest."""


class JobDeclined(Exception):
    """This worker can never run this job. Another worker may."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class FederationRefused(ValueError):
    """A federation that the algorithm cannot run. The message names a field or tensor and is public to participants.

    Of any other exception in a half, participants see only the type. Its message goes to the coordinator's log.
    """


class UpdateRefused(ValueError):
    """An update that must not be aggregated. `tensor` names the invalid tensor. It is None for facts and weight."""

    def __init__(self, tensor: str | None, reason: str) -> None:
        super().__init__(f"tensor {tensor!r} {reason}" if tensor else reason)
        self.tensor = tensor
        self.reason = reason


class ServerHalf(Protocol):
    """The half in the coordinator: torch and maths, without database, HTTP or mutable attributes."""

    def start(self, model: ModelFacts, seed: int, initial: "Payload | None") -> "Payload":
        """The first state. `initial` is an earlier adapter as `federated.export.initial_adapter` reads it."""

    def plan(self, state: "Payload", clients: Sequence[ClientFacts], step: RoundFacts) -> "Mapping[int, Payload]":
        """An instruction for each of `clients`, by ordinal. Every instruction has the fact `expects`."""

    def check(self, instruction: "Payload", update: "Payload") -> None:
        """Raise UpdateRefused for an invalid update. The caller has checked its norm and that it is finite."""

    def aggregate(self, state: "Payload", updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        """The next state. Updates are sorted by ordinal. Sums follow that order in float64."""

    def join(self, state: "Payload", parts: Sequence[Outcome], step: RoundFacts) -> Outcome:
        """Combine the outcomes of an aggregation's shards. The default is for halves that are not sharded."""
        raise NotImplementedError(f"{type(self).__name__} is not sharded")

    def export(self, state: "Payload") -> Adapter:
        """The adapter that users download."""


class ClientHalf(Protocol):
    """The half in the worker's executor. The session gives access to model and data."""

    def apply(self, instruction: "Payload", session: "TrainingSession", memory: "Payload | None", view: View) -> None:
        """Load the model to evaluate: the shared one, or this client's own."""

    def run(self, instruction: "Payload", session: "TrainingSession", memory: "Payload | None") -> ClientResult:
        """Train. `memory` is None in a first round, for a late joiner, or after disk loss. Recompute it then."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """Declaration of an algorithm. Halves are strings "module:Class", so that discovery does not load torch.

    `prepares`: preparation rounds precede the first training round. `goes_on`: it can start from an adapter.
    `gradients`: clients compute gradients. If not, they need no memory for a backward pass. `ledger`: the function
    "module:function", (Payload) -> LedgerWeights, of an algorithm that exports ledgers. `repeat_tolerance`: the
    largest deviation of an aggregation repeated in another environment, in any tensor of state or adapter, relative
    to its largest value. In the same environment every bit must be equal. `example` is a config that learns a small
    text task on a small encoder, for the API and the demo. `example_trainable` is its trainable.
    """

    name: str
    title: str
    config: type[AlgorithmConfig]
    server: str
    client: str
    trainables: frozenset[str] = frozenset({"lora"})
    personal: bool = False
    prepares: bool = False
    gradients: bool = True
    goes_on: bool = True
    shard_by: Literal["tensor", "layer", "none"] = "none"
    revision: int = 1
    ledger: str | None = None
    repeat_tolerance: float = 1e-5
    example: Mapping[str, Any] = field(default_factory=dict)
    example_trainable: Mapping[str, Any] = field(default_factory=lambda: {"kind": "lora"})
