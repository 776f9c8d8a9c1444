"""Local steps of FedKSeed: two losses along a direction, one scalar, one move (SPSA, MeZO's step with clean weights).

A copy of the clean weights is kept, so rounding in the perturbed weights never enters them. The step that is taken is
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

# A quantile of fewer scalars means little.
_FIRST_QUANTILE = 16


class PerturbedWeights:
    """The perturbed parameters of a model, and their clean values, over K directions.

    Parameters may be on several devices. Their storage is written, never replaced.
    """

    def __init__(self, directions: Directions, parameters: Mapping[str, Tensor]) -> None:
        self._flat = {name: _flat(name, value) for name, value in parameters.items()}
        self._clean: dict[str, Tensor] = {}
        self._pending: tuple[Along, float] | None = None
        self._fields: list[tuple[list[str], Field]] = []
        for device in sorted({value.device for value in parameters.values()}, key=str):
            sizes = {name: value.numel() for name, value in parameters.items() if value.device == device}
            self._fields.append((list(sizes), directions.over(sizes, device)))

    def rebuild(self, accumulators: Tensor) -> None:
        """Move the parameters from their start to `w_0 - sum_j a_j z_j`, summed in float32."""
        if accumulators.any():
            for names, field in self._fields:
                field.subtract(accumulators, {name: self._flat[name] for name in names})

    @contextmanager
    def keep_clean(self) -> Iterator[None]:
        """Keep clean values of the parameters inside the block, and copy them into the parameters at its end."""
        self._clean = {name: value.clone() for name, value in self._flat.items()}
        try:
            yield
            self._catch_up()
        finally:
            for name, value in self._flat.items():
                value.copy_(self._clean[name])
            self._clean, self._pending = {}, None

    def along(self, index: int) -> "Along":
        """One direction, on every device."""
        return [field.direction(index) for _, field in self._fields]

    def perturb(self, along: "Along", scale: float) -> None:
        """Parameters = clean + scale * direction. Only inside `keep_clean`."""
        pending, self._pending = self._pending, None
        for place, part in enumerate(along):
            if pending is None:
                part.move(scale, self._clean, self._flat)
            else:
                part.follow(pending[0][place], pending[1], scale, self._clean, self._flat)

    def step(self, along: "Along", scale: float) -> None:
        """Clean += scale * direction, with the next perturbation or at the end. The parameters stay perturbed."""
        self._catch_up()
        self._pending = along, scale

    def _catch_up(self) -> None:
        if self._pending is not None:
            along, scale = self._pending
            self._pending = None
            for part in along:
                part.move(scale, self._clean, self._clean)


# One direction: a part for each device.
Along = Sequence[Direction]


def _flat(name: str, parameter: Tensor) -> Tensor:
    if parameter.dtype is not torch.float32 or not parameter.is_contiguous():
        raise ValueError(f"tensor {name!r} must be contiguous float32, not {parameter.dtype}")
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
    """Result of a client's steps: `seeds` and `scalars` of those taken, and counts of the others."""

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
    """Takes the steps of one job. `record` is the result so far."""

    def __init__(self, weights: PerturbedWeights, sizes: StepSizes) -> None:
        self._weights = weights
        self._sizes = sizes
        self._sizes_so_far: list[float] = []
        self.record = Record()

    def step(self, seed: int, loss: Callable[[], Tensor]) -> None:
        """Take one step along direction `seed`. `loss()` is the current model's."""
        sizes, record = self._sizes, self.record
        along = self._weights.along(seed)
        self._weights.perturb(along, sizes.epsilon)
        plus = loss()
        self._weights.perturb(along, -sizes.epsilon)
        # One synchronization with the device, after both passes.
        above, below = torch.stack([plus, loss()]).double().tolist()
        if not (math.isfinite(above) and math.isfinite(below)):
            record.not_finite += 1
            return
        record.losses.append((above + below) / 2)
        if sizes.max_difference is not None and abs(above - below) > sizes.max_difference:
            record.too_large += 1
            return
        scalar = self._clip((above - below) / (2 * sizes.epsilon))
        self._weights.step(along, -sizes.learning_rate * scalar)
        record.seeds.append(seed)
        record.scalars.append(scalar)

    def _clip(self, scalar: float) -> float:
        """The scalar to record: float32, within the server's bound and this job's own quantile so far."""
        bound = self._sizes.max_scalar
        if self._sizes.clip_quantile is not None:
            if len(self._sizes_so_far) >= _FIRST_QUANTILE:
                place = math.ceil(self._sizes.clip_quantile * len(self._sizes_so_far)) - 1
                bound = min(bound, self._sizes_so_far[place])
            bisect.insort(self._sizes_so_far, abs(scalar))
        if abs(scalar) > bound:
            self.record.clipped += 1
        return float(torch.tensor(max(-bound, min(bound, scalar)), dtype=torch.float32))
