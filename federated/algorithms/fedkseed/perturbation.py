"""The local steps: two losses along a direction, one scalar, one move (SPSA; MeZO's step with clean weights kept).

The clean weights are kept aside, so what is rounded in a perturbed copy never comes back: the step that is taken is
the step that is recorded.
"""

import bisect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as dataclass_field

import torch
from torch import Tensor

from federated.algorithm_kit.local_training import TrainingDiverged
from federated.maths.directions import Direction, Directions, Field

# Fewer scalars say little about their quantile.
_FIRST_QUANTILE = 16


class PerturbedWeights:
    """The perturbed parameters of a model, and their clean values, over K directions.

    Parameters may lie on several devices. Their storage is written, never replaced.
    """

    def __init__(self, directions: Directions, parameters: Mapping[str, Tensor]) -> None:
        self._flat = {name: _flat(name, value) for name, value in parameters.items()}
        self._clean: dict[str, Tensor] = {}
        self._postponed: tuple[Along, float] | None = None
        self._fields: list[tuple[list[str], Field]] = []
        for device in sorted({value.device for value in parameters.values()}, key=str):
            sizes = {name: value.numel() for name, value in parameters.items() if value.device == device}
            self._fields.append((list(sizes), directions.over(sizes, device)))

    def rebuild(self, accumulators: Tensor) -> None:
        """Move the parameters, which stand at their start, to `w_0 - sum_j a_j z_j`; the sum is made in float32."""
        if accumulators.any():
            for names, field in self._fields:
                field.subtract(accumulators, {name: self._flat[name] for name in names})

    @contextmanager
    def clean_at_hand(self) -> Iterator[None]:
        """Keeps a copy of the parameters meanwhile, and puts what became of it into them at the end."""
        self._clean = {name: value.clone() for name, value in self._flat.items()}
        try:
            yield
            self._catch_up()
        finally:
            for name, value in self._flat.items():
                value.copy_(self._clean[name])
            self._clean, self._postponed = {}, None

    def along(self, index: int) -> "Along":
        """One of the directions, on every device."""
        return [field.direction(index) for _, field in self._fields]

    def perturb(self, along: "Along", scale: float) -> None:
        """Parameters = clean + scale * direction; clean values must be at hand."""
        postponed, self._postponed = self._postponed, None
        for place, part in enumerate(along):
            if postponed is None:
                part.move(scale, self._clean, self._flat)
            else:
                part.follow(postponed[0][place], postponed[1], scale, self._clean, self._flat)

    def step(self, along: "Along", scale: float) -> None:
        """Clean += scale * direction, with the next perturbation or at the end; the parameters stay perturbed."""
        self._catch_up()
        self._postponed = along, scale

    def _catch_up(self) -> None:
        if self._postponed is not None:
            along, scale = self._postponed
            self._postponed = None
            for part in along:
                part.move(scale, self._clean, self._clean)


# One direction: a part for each device.
Along = Sequence[Direction]


def _flat(name: str, parameter: Tensor) -> Tensor:
    if parameter.dtype is not torch.float32 or not parameter.is_contiguous():
        raise ValueError(f"tensor {name!r} must be contiguous float32 to be trained, not {parameter.dtype}")
    return parameter.detach().view(-1)


@dataclass(frozen=True, slots=True)
class StepSizes:
    """`epsilon`, `learning_rate`, and the bounds on a step as in the config."""

    epsilon: float
    learning_rate: float
    max_difference: float | None
    clip_quantile: float | None
    max_scalar: float


@dataclass(slots=True)
class Record:
    """What became of a client's steps: `seeds` and `scalars` of those taken; the others leave no other trace."""

    seeds: list[int] = dataclass_field(default_factory=list)
    scalars: list[float] = dataclass_field(default_factory=list)
    losses: list[float] = dataclass_field(default_factory=list)
    not_finite: int = 0
    too_large: int = 0
    clipped: int = 0

    def mean_loss(self) -> float:
        """Mean over the finite steps of the mean of both losses. Raises TrainingDiverged if there is none."""
        if not self.losses:
            raise TrainingDiverged(f"none of the {self.not_finite} steps had a finite loss")
        return math.fsum(self.losses) / len(self.losses)


class LocalSteps:
    """Takes the steps of one job; `record` is what was done so far."""

    def __init__(self, weights: PerturbedWeights, sizes: StepSizes) -> None:
        self._weights = weights
        self._sizes = sizes
        self._seen: list[float] = []
        self.record = Record()

    def step(self, seed: int, loss: Callable[[], Tensor]) -> None:
        """One step along direction `seed`; `loss()` is that of the model as it is."""
        sizes, record = self._sizes, self.record
        along = self._weights.along(seed)
        self._weights.perturb(along, sizes.epsilon)
        plus = loss()
        self._weights.perturb(along, -sizes.epsilon)
        # Asked of the device once, after both passes.
        above, below = torch.stack([plus, loss()]).double().tolist()
        if not (math.isfinite(above) and math.isfinite(below)):
            record.not_finite += 1
            return
        record.losses.append((above + below) / 2)
        if sizes.max_difference is not None and abs(above - below) > sizes.max_difference:
            record.too_large += 1
            return
        scalar = self._clipped((above - below) / (2 * sizes.epsilon))
        self._weights.step(along, -sizes.learning_rate * scalar)
        record.seeds.append(seed)
        record.scalars.append(scalar)

    def _clipped(self, scalar: float) -> float:
        """The scalar as it is recorded: float32, within the server's bound and this job's own quantile so far."""
        bound = self._sizes.max_scalar
        if self._sizes.clip_quantile is not None:
            if len(self._seen) >= _FIRST_QUANTILE:
                place = math.ceil(self._sizes.clip_quantile * len(self._seen)) - 1
                bound = min(bound, self._seen[place])
            bisect.insort(self._seen, abs(scalar))
        if abs(scalar) > bound:
            self.record.clipped += 1
        return float(torch.tensor(max(-bound, min(bound, scalar)), dtype=torch.float32))
