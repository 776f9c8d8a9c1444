"""Settings of FedKSeed."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from federated.contract import AlgorithmConfig, AnyTrainable, Effort, RoundFacts, repeated_passes
from federated.patterns import PatternList

# Hadamard blocks are packed in whole Philox blocks of bits, and permuted by 16-bit numbers.
MIN_HADAMARD, MAX_HADAMARD = 128, 65_536
# Default step size times the number of perturbed elements (see README).
_STEP_TIMES_ELEMENTS = 64.0


PatternSet = Annotated[
    Annotated[Literal["all", "lora"], Tag("word")] | Annotated[PatternList, Tag("patterns")],
    Discriminator(lambda value: "word" if isinstance(value, str) else "patterns"),
]


class FedKSeedConfig(AlgorithmConfig):
    """Settings of the client's steps: two losses along a direction give a scalar and a move along that direction."""

    variant: Literal["kseed", "pro"] = Field(default="kseed", description="pro: directions drawn by their scalars")
    directions: Literal["hadamard", "rademacher", "gaussian"] = Field(
        default="hadamard", description="gaussian is the paper's; hadamard rebuilds a model thousands of times faster"
    )
    candidates: int = Field(default=4096, ge=2, le=MAX_HADAMARD, description="K, the number of directions")
    local_steps: int = Field(default=200, ge=1, le=65_536, description="pairs of forward passes per round")
    batch_size: int = Field(default=16, ge=1, le=4096, description="examples per step")
    epsilon: float = Field(
        default=1e-3, gt=0, le=1, description="distance of the two perturbed models from the current one"
    )
    learning_rate: float | None = Field(
        default=None, gt=0, le=100, description="null: 64 / number of perturbed elements"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="schedule of the learning rate over the rounds, down to final_fraction of it"
    )
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    perturb: PatternSet = Field(
        default="all", description="all trained tensors, the LoRA factors alone, or those that match patterns"
    )
    weighting: Literal["examples", "equal"] = Field(default="examples", description="weight of each client")
    max_difference: float | None = Field(
        default=None, gt=0, le=1e9, description="a step whose losses differ by more is skipped"
    )
    clip_quantile: float | None = Field(
        default=0.98, gt=0, lt=1, description="scalars above this quantile of the job's scalars are clipped to it"
    )
    max_scalar: float = Field(
        default=1000.0, gt=0, le=1e9, description="scalars are clipped to it; the server refuses larger ones"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_weight_decay(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "weight_decay" in values:
            raise ValueError(
                "weight_decay is not possible: it does not commute with the steps, so the sum of the scalars would "
                "no longer be the model"
            )
        return values

    @model_validator(mode="after")
    def _power_of_two(self) -> "FedKSeedConfig":
        count = self.candidates
        fits = MIN_HADAMARD <= count <= MAX_HADAMARD and count & (count - 1) == 0
        if self.directions == "hadamard" and not fits:
            raise ValueError(
                f"candidates must be a power of two from {MIN_HADAMARD} to {MAX_HADAMARD} for hadamard, not {count}"
            )
        return self

    def check_trainable(self, trainable: AnyTrainable) -> None:
        """Raise ValueError for `perturb: lora` without LoRA, and for LoRA with trained biases."""
        if self.perturb == "lora" and trainable.kind != "lora":
            raise ValueError(f"perturb 'lora' needs a LoRA trainable, not {trainable.kind!r}")
        if trainable.kind == "lora" and trainable.bias != "none":
            raise ValueError(
                f"bias {trainable.bias!r} starts from the base model, which the coordinator does not have: "
                "set bias to 'none', or train the weights themselves (kind 'full')"
            )

    def most_effort(self, kind: Literal["prepare", "train"], examples: int) -> Effort:
        """Effort of a job. A step is a pair of forward passes over a batch."""
        rows = min(examples, self.local_steps * self.batch_size)
        return Effort(self.local_steps, repeated_passes(self.local_steps, self.batch_size, examples), rows)

    def learning_rate_of(self, elements: int, step: RoundFacts) -> float:
        """Step size of a round in which `elements` numbers are perturbed."""
        initial_rate = _STEP_TIMES_ELEMENTS / elements if self.learning_rate is None else self.learning_rate
        if self.schedule == "constant" or step.rounds <= 1:
            return initial_rate
        progress = min(1.0, (step.number - 1) / (step.rounds - 1))
        factor = 1 - progress if self.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return initial_rate * (self.final_fraction + (1 - self.final_fraction) * factor)
