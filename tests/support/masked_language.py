"""Tiny base models with a masked-language head, and a tokenizer with a mask token."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from tests.support import tiny_models


def masked_bert_folder(folder: Path) -> Path:
    """A BERT with its masked-language head."""
    return _stored(folder, lambda settings: BertForMaskedLM(BertConfig(**settings)))


def masked_roberta_folder(folder: Path) -> Path:
    """A RoBERTa with its masked-language head."""
    return _stored(folder, lambda settings: RobertaForMaskedLM(RobertaConfig(**settings)))


def _stored(folder: Path, make: Any) -> Path:
    tiny_models.bert_folder(folder)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: PreTrainedModel = make({**tiny_models.SMALL, "vocab_size": len(tokenizer)})
    model.save_pretrained(folder)
    return folder
