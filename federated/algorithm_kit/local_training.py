"""The gradient loop that every algorithm with local steps runs: order, accumulate, clip, step.

It hardly ever waits for the device between two reports, and takes everything from the session, so a method changes it
through `Hooks` alone.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from federated.contract import GradientConfig
from federated.maths.generator import stream_key, words
from federated.session import Batch, TrainingSession

_REPORT_SECONDS = 0.5
# The loss leaves float32 at fixed steps and never at a report, whose time would show in its last bits.
_WAIT_EVERY_STEPS = 64


class TrainingDiverged(ArithmeticError):
    """The loss is no longer finite; nothing of the run is worth submitting."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a method changes in the loop.

    `order(epoch)`: indices of the examples of that epoch, a pure function; None: all, shuffled by the job's seed.
    `masks`: parameter name -> bool of its shape; where False the parameter keeps its bits, since the update
    itself is masked (AdamW's decay and moments move a parameter without a gradient), and its gradient does not count
    in the clipped norm.
    `penalty()`: added to the mean loss of each step, once, whatever the number of micro batches.
    `moments`: the optimiser's state, `NAME/KEY` -> tensor; taken up before the first step where it has it, and
    replaced by what the last step left. None: it begins at zero and is forgotten.
    """

    order: Callable[[int], Sequence[int]] | None = None
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    penalty: Callable[[], Tensor] | None = None
    moments: dict[str, Tensor] | None = None


def train(session: TrainingSession, config: GradientConfig, hooks: Hooks | None = None) -> dict[str, float]:
    """Run the local steps of one job on `session.trainables` that require a gradient.

    Returns `loss` (mean over the steps, without penalty), `steps`, `examples_seen`, `seconds` (inside the loop).
    Epochs follow each other without a gap: only the job's last batch may be smaller.
    Raises TrainingDiverged, and JobInterrupted from `session.progress`.
    """
    began = time.perf_counter()
    hooks = hooks or Hooks()
    order = hooks.order or (lambda epoch: shuffled(session.seed, epoch, session.examples))
    per_epoch = len(order(0))
    examples = config.examples_to_see(per_epoch)
    session.training(True)
    loop = _Loop(session, config, hooks, steps=config.planned_steps(per_epoch))
    for batch in _batches(session, order, examples, config.batch_size):
        loop.step(batch)
    loop.leave_moments()
    return {
        "loss": loop.mean_loss(),
        "steps": float(loop.done),
        "examples_seen": float(examples),
        "seconds": time.perf_counter() - began,
    }


def shuffled(seed: int, epoch: int, examples: int) -> list[int]:
    """The order of all examples in an epoch: a permutation by the job's seed, the same everywhere."""
    keys = words(stream_key(seed, f"order of epoch {epoch}"), 0, examples)
    order: list[int] = torch.argsort(keys, stable=True).tolist()
    return order


def _batches(
    session: TrainingSession, order: Callable[[int], Sequence[int]], examples: int, size: int
) -> Iterator[Batch]:
    waiting: list[int] = []
    epoch = 0
    while examples > 0:
        drawn = list(order(epoch))[:examples]
        if not drawn:
            raise ValueError(f"epoch {epoch} has no example to train on")
        examples -= len(drawn)
        waiting += drawn
        whole = len(waiting) - len(waiting) % size if examples else len(waiting)
        yield from session.batches(waiting[:whole], size)
        waiting = waiting[whole:]
        epoch += 1


class _Loop:
    """One run of the loop: optimiser, size of a forward pass, and the loss so far."""

    def __init__(self, session: TrainingSession, config: GradientConfig, hooks: Hooks, steps: int) -> None:
        self._session = session
        self._config = config
        self._penalty = hooks.penalty
        trained = {name: value for name, value in session.trainables.items() if value.requires_grad}
        self._parameters = list(trained.values())
        self._masked = [(trained[name], mask.to(session.device)) for name, mask in hooks.masks.items()]
        self._optimizer = _optimizer(config, self._parameters)
        self._moments = hooks.moments
        self._trained = trained
        self._take_up_moments()
        self._forward_examples = min(config.micro_batch_size or config.batch_size, config.batch_size)
        self._steps = steps
        self._reported = time.monotonic()
        self._summed = 0.0
        self._pending = torch.zeros((), device=session.device)
        self.done = 0

    def step(self, batch: Batch) -> None:
        config = self._config
        if self.done <= config.warmup_steps and config.warmup_steps:
            for group in self._optimizer.param_groups:
                group["lr"] = config.learning_rate * min(1.0, (self.done + 1) / config.warmup_steps)
        self._pending += self._backward(batch)
        for parameter, mask in self._masked:
            # What is not trained does not count in the clipped norm.
            if parameter.grad is not None:
                parameter.grad.mul_(mask)
        if config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, config.max_grad_norm)
        self._update()
        self._optimizer.zero_grad(set_to_none=True)
        self.done += 1
        if self.done % _WAIT_EVERY_STEPS == 0:
            self._summed += float(self._pending)
            self._pending.zero_()
        if self.done == self._steps or time.monotonic() - self._reported >= _REPORT_SECONDS:
            self._report()

    def leave_moments(self) -> None:
        if self._moments is None:
            return
        self._moments.clear()
        for name, parameter in self._trained.items():
            for key, value in self._optimizer.state[parameter].items():
                self._moments[f"{name}/{key}"] = value.detach().to("cpu", torch.float32, copy=True)

    def _take_up_moments(self) -> None:
        for full_name, value in (self._moments or {}).items():
            name, _, key = full_name.rpartition("/")
            parameter = self._trained.get(name)
            if parameter is not None and value.shape in (parameter.shape, torch.Size()):
                # The optimiser counts its steps on the CPU.
                device = parameter.device if value.dim() else torch.device("cpu")
                self._optimizer.state[parameter][key] = value.to(device, copy=True)

    def mean_loss(self) -> float:
        mean = (self._summed + float(self._pending)) / max(self.done, 1)
        if not math.isfinite(mean):
            raise TrainingDiverged(f"the loss is {mean} after {self.done} steps; try a smaller learning_rate")
        return mean

    def _report(self) -> None:
        self._session.progress(self.done, self._steps, {"loss": self.mean_loss()})
        self._reported = time.monotonic()

    def _update(self) -> None:
        before = [parameter.detach().clone() for parameter, _ in self._masked]
        self._optimizer.step()
        with torch.no_grad():
            for (parameter, mask), kept in zip(self._masked, before, strict=True):
                parameter.copy_(torch.where(mask, parameter, kept))

    def _backward(self, batch: Batch) -> Tensor:
        while True:
            try:
                return self._accumulate(batch)
            except torch.OutOfMemoryError:
                if self._forward_examples <= 1:
                    raise
            # Outside the handler: the exception keeps the failed pass's tensors alive.
            self._halve()

    def _halve(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        if self._session.device.type == "cuda":
            torch.cuda.empty_cache()
        self._forward_examples = max(1, self._forward_examples // 2)
        self._session.record_nondeterminism("batch_halved")

    def _accumulate(self, batch: Batch) -> Tensor:
        whole = batch.examples <= self._forward_examples
        loss = torch.zeros((), device=self._session.device)
        for piece in (batch,) if whole else self._session.split(batch, self._forward_examples):
            # Each piece counts by its examples: the mean over the batch stays exact when the last is smaller.
            part = (
                self._session.loss(piece) if whole else self._session.loss(piece) * (piece.examples / batch.examples)
            )
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        if self._penalty is not None:
            self._penalty().backward()  # type: ignore[no-untyped-call]
        return loss


def _optimizer(config: GradientConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
    return torch.optim.SGD(
        parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
