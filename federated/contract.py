"""The contract of an algorithm: state in, state out.

An algorithm is a folder with an `ALGORITHM` in its `__init__`, a config, a server half and a client half. Both
halves are made as `Half(config, trainable)` and have no mutable attribute: all that lasts is in the payloads.
Torch stands in annotations only, because the web process loads the configs.

Reserved facts of a payload: `phase` ("prepare" | "train") and `cohort` ("all") in a state; `expects` in an
instruction, a table name -> {"dtype", "shape" | "max_shape"} that the web process holds an update's header against.
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
    """The most that one job does on a client. `steps`: of an optimiser, or pairs of forward passes in their place.

    `passes`: over all the client's examples beside those steps, forward with or without backward; a step whose batch
    is larger than the client's data counts here with what it repeats. `examples`: of how many of the client's rows
    an update is made at most, in the round that takes the fewest; None where that is only known afterwards.
    """

    steps: int = 0
    passes: float = 0.0
    examples: int | None = None


class AlgorithmConfig(BaseModel):
    """Base of every algorithm's config: frozen, unknown fields refused, its JSON Schema is the API's."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def check_trainable(self, trainable: AnyTrainable) -> None:
        """Raise ValueError if this config cannot train `trainable` (the kind itself was checked before)."""

    def check_served(self) -> None:
        """Raise ValueError for a setting of simulations alone, whose result no user could download and open."""

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise ValueError unless a client may register with these `settings`; none are known by default."""
        if settings:
            raise ValueError(f"unknown client setting {min(settings)!r}: this algorithm takes none")

    def largest_rank(self, trainable: AnyTrainable, limit: int | None) -> int:
        """The largest rank asked of a client whose node allows at most `limit` (None: any); 0 without factors.

        By default the trainable's, whatever the node allows; an algorithm whose clients have ranks of their own
        keeps below the limit.
        """
        return trainable.largest_rank if isinstance(trainable, Lora) else 0

    def most_effort(self, kind: Literal["prepare", "train"], examples: int) -> Effort | None:
        """The most that a job of this kind does on a client of so many examples; None where that cannot be said.

        A node that bounds its jobs refuses what cannot be said.
        """
        return None


class GradientConfig(AlgorithmConfig):
    """Settings of the local gradient loop, `algorithm_kit.local_training`. Either steps or epochs are set."""

    local_steps: int | None = Field(default=None, ge=1, le=1_000_000, description="optimiser steps per round")
    local_epochs: float = Field(default=1.0, gt=0, le=1000, description="used when local_steps is null")
    batch_size: int = Field(default=16, ge=1, le=4096, description="examples per optimiser step")
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
        """The steps of the gradient loop."""
        effort = self.effort_of(self.planned_steps(examples), examples)
        return replace(effort, examples=self.lasting_examples(examples))

    def lasting_examples(self, examples: int) -> int:
        """Of how many an update is made: all that are seen, but for steps that weight decay leaves under 1 % of."""
        kept = abs(1 - self.learning_rate * self.weight_decay)
        steps = math.inf if kept == 1 else 1 if kept == 0 else math.ceil(math.log(100) / abs(math.log(kept)))
        return int(min(examples, self.examples_to_see(examples), steps * self.batch_size))

    def planned_steps(self, examples: int) -> int:
        """Optimiser steps over a client of so many examples. Raises ValueError for none."""
        return math.ceil(self.examples_to_see(examples) / self.batch_size)

    def examples_to_see(self, examples: int) -> int:
        """Examples that those steps are taken over, each as often as it comes. Raises ValueError for none."""
        if examples == 0:
            raise ValueError("there is no example to train on")
        if self.local_steps is not None:
            return self.local_steps * self.batch_size
        # 0.1 epochs of 30 examples are 3 of them, not the 4 that 3.0000000000000004 rounds up to.
        return max(1, math.ceil(self.local_epochs * examples - 1e-9))

    def effort_of(self, steps: int, examples: int) -> Effort:
        """So many steps of `batch_size` examples."""
        return Effort(steps, repeated_passes(steps, self.batch_size, examples))


def repeated_passes(steps: int, batch_size: int, examples: int) -> float:
    """Passes over the data that steps make beyond one each, because their batch is larger than the data."""
    return steps * max(0.0, batch_size / max(1, examples) - 1)


@dataclass(frozen=True, slots=True)
class RoundFacts:
    """Which round a half works for. `rounds` is how many the federation plans, `registered` its clients now."""

    number: int
    kind: Literal["prepare", "train", "evaluate"]
    rounds: int
    registered: int


@dataclass(frozen=True, slots=True)
class ClientFacts:
    """A drawn client. `settings` were given at registration; `note` is what the server remembers of it."""

    ordinal: int
    name: str
    examples: int
    capabilities: Mapping[str, Any]
    settings: Mapping[str, Any]
    note: "Payload | None"
    rounds_taken: int


@dataclass(frozen=True, slots=True)
class ClientUpdate:
    """An accepted update; `payload` and `note` are memory-mapped. 0 < weight <= examples."""

    ordinal: int
    examples: int
    weight: float
    payload: "Payload"
    metrics: Mapping[str, float]
    note: "Payload | None"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The next state. `finished` ends the federation with that reason; `notes` replace those of the clients named."""

    state: "Payload"
    metrics: Mapping[str, float] = field(default_factory=dict)
    finished: str | None = None
    notes: "Mapping[int, Payload]" = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientResult:
    """What a client half made. `memory` stays on the worker. `measured`: the update is of numbers about layers."""

    update: "Payload"
    weight: float
    metrics: Mapping[str, float]
    memory: "Payload | None" = None
    measured: bool = False


@dataclass(frozen=True, slots=True)
class Adapter:
    """What users download. `tensors` by canonical name; `config` are PEFT fields that differ from the trainable's.

    Kind "peft" opens in `peft.PeftModel.from_pretrained`. Kind "ledger" is applied to a base model's folder by
    `federated.merge`; its facts name `algorithm`, `weights_digest` and `task_type`.
    """

    kind: Literal["peft", "ledger"]
    tensors: "Mapping[str, Tensor]"
    config: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LedgerWeights:
    """What a ledger makes of a base model, by canonical name; tensors are made when they are asked for.

    `differences` are added to the base's values in float32, and the sum is rounded once; `values` stand beside the
    base's or in their place.
    """

    differences: "Payload"
    values: "Payload"


class LedgerInvalid(ValueError):
    """A ledger that cannot be applied here; the text names the fact, tensor or digest."""


class JobDeclined(Exception):
    """This worker cannot do this job, now or later, and says why; another worker may."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class FederationRefused(ValueError):
    """A federation that the algorithm cannot run. The text names a field or tensor, and may be read by all in it.

    Of any other exception of a half only the type is told; its text goes to the coordinator's log.
    """


class UpdateRefused(ValueError):
    """An update that must not be aggregated. `tensor` names what was wrong, or None for facts and weight."""

    def __init__(self, tensor: str | None, reason: str) -> None:
        super().__init__(f"tensor {tensor!r} {reason}" if tensor else reason)
        self.tensor = tensor
        self.reason = reason


class ServerHalf(Protocol):
    """Torch and maths; no database, no HTTP, no mutable attribute."""

    def start(self, model: ModelFacts, seed: int, initial: "Payload | None") -> "Payload":
        """The first state. `initial`: an earlier adapter, read by `federated.export.initial_adapter`."""

    def plan(self, state: "Payload", clients: Sequence[ClientFacts], step: RoundFacts) -> "Mapping[int, Payload]":
        """Ordinal -> instruction, one for each given client; every instruction has the fact `expects`."""

    def check(self, instruction: "Payload", update: "Payload") -> None:
        """Raise UpdateRefused unless the update may be aggregated (finite and norm are checked before)."""

    def aggregate(self, state: "Payload", updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        """The next state. Updates come sorted by ordinal, and sums follow that order in float64."""

    def join(self, state: "Payload", parts: Sequence[Outcome], step: RoundFacts) -> Outcome:
        """Put together what shards of one aggregation made; only called where `shard_by` is not "none"."""

    def export(self, state: "Payload") -> Adapter:
        """The adapter users download."""


class ClientHalf(Protocol):
    """Runs in the worker's executor; asks everything of the session."""

    def apply(self, instruction: "Payload", session: "TrainingSession", memory: "Payload | None", view: View) -> None:
        """Put the model into the state to evaluate: what all share, or this client's own."""

    def run(self, instruction: "Payload", session: "TrainingSession", memory: "Payload | None") -> ClientResult:
        """Train. `memory` is None in a first round, for a late joiner, or after a lost disk: recompute."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What an algorithm's folder declares. Halves are named "module:Class", so that discovery loads no torch.

    `prepares`: rounds of preparation come before the first one of training. `goes_on`: it can start from an adapter.
    `gradients`: clients compute some; else none needs the memory of a backward pass. `ledger`, for an algorithm that
    exports ledgers, is "module:function" with (Payload) -> LedgerWeights: what everybody calls who applies one.
    `repeat_tolerance` is how far an aggregation that is done again in another environment may be off, at most, in
    any tensor of its state or adapter, relative to the tensor's largest value; in the same one, no bit may.
    `example` is a config that learns a small text task on a small encoder: the API shows it, the demo uses it;
    `example_trainable` the trainable that goes with it.
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
