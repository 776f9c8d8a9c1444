"""Forward pass from a batch to logits and losses, for a classifier and for a causal model."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker_agent.training.adapters import AdaptedModel
from worker_agent.training.device import precision
from worker_agent.training.tokens import IGNORE_INDEX, TokenBatch


class Forward:
    """Runs the model; matrix products in `dtype`, logits and losses in float32.

    `exact`: all products are float32, so that equal values differ in their last digits only.
    """

    def __init__(self, adapted_model: AdaptedModel, dtype: torch.dtype) -> None:
        self.causal = adapted_model.facts.task_type == "CAUSAL_LM"
        embeddings: Any = adapted_model.base.get_input_embeddings()
        self.device: torch.device = embeddings.weight.device
        whole = dtype == torch.float32 and not getattr(adapted_model.base, "is_quantized", False)
        self.exact = whole and self.device.type == "cpu"  # a GPU may round them
        self._model: nn.Module = adapted_model.model
        self._dtype = dtype
        # Vocabularies are large, so logits are computed only from the token before the first response on.
        self._keeps_logits = "logits_to_keep" in inspect.signature(adapted_model.base.forward).parameters

    def __call__(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Logits and their targets.

        A classifier's are (examples, classes) and (examples,), a cloze's (examples, vocabulary) and (examples,); a
        causal model's are (examples, positions, vocabulary) and (examples, positions), -100 where there is no
        target.
        """
        first = max(batch.first_target - 1, 0)
        logits_to_keep = batch.targets.shape[1] - first if self.causal else 0
        options: dict[str, Any] = {"logits_to_keep": logits_to_keep} if self.causal and self._keeps_logits else {}
        with precision(self.device, self._dtype):
            logits = self._model(**batch.inputs, **options).logits
        if batch.cloze is not None:
            return batch.cloze.gap_logits(logits).float(), batch.cloze.word_targets(batch.targets).to(logits.device)
        logits = logits.float()
        targets = batch.targets.to(logits.device)
        return (logits[:, -logits_to_keep:-1], targets[:, first + 1 :]) if self.causal else (logits, targets)


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss of each example (float32); a causal example's is the mean over its response tokens."""
    if logits.dim() == 2:
        return functional.cross_entropy(logits, targets, reduction="none")
    return -log_likelihoods(logits, targets) / (targets != IGNORE_INDEX).sum(dim=1).clamp(min=1)


def log_likelihoods(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-likelihood of all response tokens of each example of a causal model (float32)."""
    each = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORE_INDEX)
    return -each.sum(dim=1)
