"""Base models of a few thousand random weights, each a folder as the hub has it: config, safetensors, tokenizer."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)
from transformers.utils import logging as transformers_logging

WORDS = ["red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "is", "a", "the", "say", ":", "."]
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
SMALL: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}


def bert_folder(folder: Path, *, seed: int = 0, pooler: bool = True, shard_bytes: int | None = None) -> Path:
    """An encoder; without its pooler, the files lack what a classifier needs."""
    return _stored(folder, seed, lambda: BertModel(BertConfig(**SMALL), add_pooling_layer=pooler), shard_bytes)


def roberta_folder(folder: Path, *, seed: int = 0) -> Path:
    """An encoder whose classifier has a head of two layers."""
    return _stored(folder, seed, lambda: RobertaModel(RobertaConfig(**SMALL), add_pooling_layer=False))


def llama_folder(folder: Path, *, seed: int = 0, tied: bool = False) -> Path:
    """A decoder with half as many key-value heads as heads, each wider than hidden size / heads."""
    config = LlamaConfig(
        **SMALL, num_key_value_heads=2, head_dim=6, bos_token_id=2, eos_token_id=3, tie_word_embeddings=tied
    )
    return _stored(folder, seed, lambda: LlamaForCausalLM(config))


def color_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows whose label is the color that occurs in the text."""
    draw = random.Random(seed)
    colors = WORDS[:3]
    rows = []
    for _ in range(count):
        color, animal, number = draw.choice(colors), draw.choice(WORDS[6:9]), draw.choice(WORDS[3:6])
        rows.append({"text": f"the {animal} {number} is {color}", "label": color})
    return rows


def instruction_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows that ask to repeat a color."""
    return [
        {"instruction": "say the " + row["label"], "input": row["text"], "output": row["label"] + " ."}
        for row in color_rows(count, seed)
    ]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _stored(folder: Path, seed: int, make: Any, shard_bytes: int | None = None) -> Path:
    library: Any = transformers_logging
    library.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = make()
    options: dict[str, Any] = {} if shard_bytes is None else {"max_shard_size": shard_bytes}
    model.save_pretrained(folder, **options)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL.values(), *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    make: Any = PreTrainedTokenizerFast
    tokenizer_fast: PreTrainedTokenizerFast = make(tokenizer_object=tokenizer, **SPECIAL)
    return tokenizer_fast
