"""Checks of a tokenizer against the model that embeds its tokens and the texts to read."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from worker_agent.training.job_errors import ModelError
from worker_agent.training.tokens import Examples


def check_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ModelError (tokenizer_mismatch) for a tokenizer with more tokens than the model has embeddings."""
    table: Any = model.get_input_embeddings()
    embeddings = len(table.weight)
    if len(tokenizer) > embeddings:
        detail = f"the tokenizer has {len(tokenizer)} tokens, the model embeds {embeddings}"
        raise ModelError("tokenizer_mismatch", f"{detail}; use the tokenizer that belongs to it, or grow the model")


def check_words(examples: Examples, tokenizer: PreTrainedTokenizerBase, dataset: str) -> None:
    """Raises ModelError (model_missing) for a tokenizer that knows no word of the examples."""
    special = torch.tensor(sorted(set(tokenizer.all_special_ids)), dtype=examples.ids.dtype)
    if len(examples) and bool(torch.isin(examples.ids, special).all()):
        detail = f"this model's tokenizer knows no word of {dataset}"
        raise ModelError("model_missing", f"{detail}; check that the tokenizer in its folder is the model's own")
