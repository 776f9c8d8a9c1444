"""Trial of a model over the shortest and the longest example: what fails here would fail in every job.

It checks values, not the kind of the model: losses and gradients are finite, an example has the same logits alone and
padded, and no logit of a causal model depends on a later token.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from federated.contract import AnyTrainable
from federated.trainable import Prefix
from worker_agent.node.disclosure import whereabouts
from worker_agent.training.forward import losses
from worker_agent.training.job_errors import ModelError
from worker_agent.training.session import Session
from worker_agent.training.tokens import IGNORE_INDEX, TokenBatch

_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
EXACT_TOLERANCE, ROUNDING_TOLERANCE = 1e-3, 0.1
"""Tolerated difference of equal logits, relative to the largest of them: in float32, and in lower precision."""


def try_model(session: Session, trainable: AnyTrainable, *, gradients: bool) -> None:
    """Run forward passes, and with `gradients` a backward pass, over a client's shortest and longest examples.

    Leaves gradients at None and the weights unchanged. Raises ModelError (model_not_finite, model_padding,
    model_not_causal, trainable_invalid, model_unfit). Errors for lack of memory are raised unchanged.
    """
    try:
        _Trial(session, trainable.kind).run(gradients)
    except (ModelError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except _FAILURES as error:
        if "can't allocate memory" in str(error):
            raise
        kind = f"{type(error).__name__}: {error}"
        detail = f"a {session.facts.model_type} cannot take a step with {trainable.kind}: {kind}"
        refusal = ModelError("trainable_invalid" if isinstance(trainable, Prefix) else "model_unfit", detail)
        refusal.facts = whereabouts(error)
        raise refusal from error
    finally:
        session.training(False)
        for parameter in session.trainables.values():
            parameter.grad = None


class _Trial:
    """The shortest and longest example of a session, among training and held-out examples."""

    def __init__(self, session: Session, kind: str) -> None:
        self._session, self._kind = session, kind
        self._rounding = EXACT_TOLERANCE if session.forward.exact else ROUNDING_TOLERANCE
        self._shortest = _extreme(session, min)
        self._longest = _extreme(session, max)

    def run(self, gradients: bool) -> None:
        """Run all checks, the cheapest first."""
        self._session.training(False)
        with torch.no_grad():
            alone, longest = (self._logits(batch) for batch in (self._shortest, self._longest))
            self._compare_padded(alone)
            if self._session.forward.causal:
                self._compare_with_other_ending(longest)
        if gradients:
            self._step_back()

    def _logits(self, batch: TokenBatch) -> Tensor:
        """The logits of an example. Raises ModelError if its loss is not finite."""
        logits, targets = self._session.forward(batch)
        if not bool(losses(logits, targets).isfinite().all()):
            detail = "the loss of an example is not finite before anything was trained"
            raise ModelError("model_not_finite", f"{detail}; look at the weights of the base model and its dtype")
        return logits

    def _compare_padded(self, alone: Tensor) -> None:
        pad = _tokens(self._longest) - _tokens(self._shortest)
        if pad == 0:
            return
        padded_logits, targets = self._session.forward(_pad(self._shortest, pad, self._session.data.train.pad_id))
        if alone.dim() == 3:
            is_target = (targets != IGNORE_INDEX)[:, : alone.shape[1]]
            alone, padded_logits = alone[is_target], padded_logits[:, : alone.shape[1]][is_target]
        if self._differ(alone, padded_logits):
            detail = f"a {self._session.facts.model_type} gives other results when an example is padded"
            raise ModelError("model_padding", f"{detail}; look at pad_token_id in its config.json and its tokenizer")

    def _compare_with_other_ending(self, logits: Tensor) -> None:
        ids = self._longest.inputs["input_ids"].clone()
        ids[:, -1] = torch.where(ids[:, -1] == 0, 1, ids[:, -1] - 1)
        other = replace(self._longest, inputs={**self._longest.inputs, "input_ids": ids})
        if self._differ(logits, self._session.forward(other)[0]):
            detail = f"in a {self._session.facts.model_type} a token depends on later ones"
            raise ModelError("model_not_causal", f"{detail}; use a model that reads from left to right (a decoder)")

    def _differ(self, one: Tensor, other: Tensor) -> bool:
        if one.numel() == 0:
            return False
        size = float(one.abs().max())
        return not float((one - other).abs().max()) <= self._rounding * size

    def _step_back(self) -> None:
        session = self._session
        session.training(True)
        losses(*session.forward(self._longest)).mean().backward()  # type: ignore[no-untyped-call]
        norms = [float(value.grad.norm()) for value in session.trainables.values() if value.grad is not None]
        if not all(map(math.isfinite, norms)):
            detail = "the gradient is not finite before anything was trained"
            raise ModelError("model_not_finite", f"{detail}; look at the base model, and at dtype in the settings")
        if not any(norms):
            detail = f"nothing of what {self._kind} trains changes the loss of a {session.facts.model_type}"
            raise ModelError("trainable_invalid", detail)


def _extreme(session: Session, choose: Callable[..., int]) -> TokenBatch:
    """The first example of the smallest or largest length, as a batch."""
    parts = [part for part in (session.data.train, session.data.held_out) if len(part)]
    best = [(part, choose(range(len(part)), key=part.length)) for part in parts]
    lengths = [part.length(index) for part, index in best]
    part, index = best[lengths.index(choose(lengths))]
    return part.batch([index], session.device)


def _tokens(batch: TokenBatch) -> int:
    return batch.inputs["input_ids"].shape[1]


def _pad(batch: TokenBatch, pad: int, pad_id: int) -> TokenBatch:
    """The batch with `pad` more tokens, as it would be beside a longer example."""
    inputs = {
        name: functional.pad(value, (0, pad), value=pad_id if name == "input_ids" else 0)
        for name, value in batch.inputs.items()
    }
    targets = (
        functional.pad(batch.targets, (0, pad), value=IGNORE_INDEX) if batch.targets.dim() == 2 else batch.targets
    )
    return replace(batch, inputs=inputs, targets=targets)
