"""Metrics on held-out examples."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from federated.protocol import TaskDefinition
from worker_agent.training.forward import Forward, log_likelihoods, losses
from worker_agent.training.metrics import METRICS, confusion
from worker_agent.training.multiple_choice import Choices
from worker_agent.training.tokens import IGNORE_INDEX, Examples

BATCH_TOKENS = 8192
MIN_TOKENS = 256


def evaluate(
    forward: Forward, examples: Examples, task: TaskDefinition, progress: Callable[[int, int], None]
) -> dict[str, float]:
    """`loss`, the task's metrics and `examples`; without examples only `examples`, which is 0.

    A causal model's accuracy is the share of response tokens predicted from the true ones before them; matthews and
    f1 are not defined for it. Batches shrink until they fit into memory.
    """
    batch_tokens = BATCH_TOKENS
    while True:
        try:
            return _evaluate_batches(forward, examples, task, batch_tokens, progress)
        except torch.OutOfMemoryError:
            if batch_tokens <= MIN_TOKENS:
                raise
        # Outside the handler: the exception keeps the failed pass's tensors alive.
        batch_tokens //= 2


@torch.no_grad()
def _evaluate_batches(
    forward: Forward,
    examples: Examples,
    task: TaskDefinition,
    batch_tokens: int,
    progress: Callable[[int, int], None],
) -> dict[str, float]:
    if len(examples) == 0:
        return {"examples": 0.0}
    classes = len(task.labels or ("wrong", "right"))
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    total = 0.0
    batches = list(_batches(examples, batch_tokens))
    for number, indices in enumerate(batches, start=1):
        predict = _predict_classes if examples.choices is None else partial(_predict_words, examples.choices)
        each, true, predictions = predict(forward, examples, indices)
        total += float(each.double().sum())
        counts += confusion(true, predictions, classes)
        progress(number, len(batches))
    names = [name for name in task.metrics if name == "accuracy" or task.task != "causal_lm"]
    metrics = {str(name): METRICS[name](counts) for name in names}
    return {"loss": total / len(examples), **metrics, "examples": float(len(examples))}


def _predict_classes(forward: Forward, examples: Examples, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each example, true classes and predicted classes."""
    batch = examples.batch(indices, forward.device)
    logits, targets = forward(batch)
    each = losses(logits, targets)
    if batch.cloze is not None:
        logits, targets = batch.cloze.word_logits(logits), batch.targets
    return each, *_classes_of(logits, targets)


def _predict_words(
    choices: Choices, forward: Forward, examples: Examples, indices: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for texts that are read with every word; the likeliest word gives the class."""
    logits, targets = forward(examples.with_every_word(choices, indices, forward.device))
    true = examples.targets[list(indices)].to(logits.device)
    each, likely = (
        scores.reshape(len(true), -1) for scores in (losses(logits, targets), log_likelihoods(logits, targets))
    )
    return each.gather(1, true[:, None]).squeeze(1), true, likely.argmax(dim=1)


def _classes_of(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """True and predicted classes. For a causal model, each target token has class 1 and prediction 1 if correct."""
    predictions = logits.argmax(-1)
    if logits.dim() == 2:
        return targets, predictions
    right = (predictions == targets)[targets != IGNORE_INDEX].long()
    return torch.ones_like(right), right


def _batches(examples: Examples, batch_tokens: int) -> Iterator[list[int]]:
    """Batches of examples of similar length, so that little is padding. They depend on the examples only."""
    order = sorted(range(len(examples)), key=lambda index: (-examples.length(index), index))
    while order:
        size = max(1, batch_tokens // max(examples.length(order[0]), 1))
        yield order[:size]
        order = order[size:]
