"""Cloze classification with an encoder: the gap in each text, and the label words that may fill it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from federated.protocol import Cloze
from federated.task import GAP
from federated.templates import Template
from worker_agent.training.job_errors import DataError, ModelError


@dataclass(frozen=True, slots=True)
class GapBatch:
    """`positions`: (examples,) of the gaps; `words`: (classes,) token ids of the label words."""

    positions: Tensor
    words: Tensor

    def gap_logits(self, logits: Tensor) -> Tensor:
        """(examples, vocabulary) of (examples, tokens, vocabulary)."""
        return logits[torch.arange(len(logits), device=logits.device), self.positions.to(logits.device)]

    def word_targets(self, classes: Tensor) -> Tensor:
        """Token ids of these classes' words."""
        return self.words.to(classes.device)[classes]

    def word_logits(self, logits: Tensor) -> Tensor:
        """(examples, classes) of (examples, vocabulary)."""
        return logits[:, self.words.to(logits.device)]


@dataclass(frozen=True, slots=True)
class Gaps:
    """Gaps of all examples: `positions` (examples,) int64, `words` (classes,) int64."""

    positions: Tensor
    words: Tensor

    def batch(self, indices: Sequence[int]) -> GapBatch:
        """The gaps of these examples."""
        return GapBatch(self.positions[list(indices)], self.words)


def word_ids(tokenizer: PreTrainedTokenizerBase, cloze: Cloze) -> Tensor:
    """The token of each label word inside a text. Raises ModelError (cloze_impossible)."""
    if tokenizer.mask_token_id is None:
        raise ModelError("cloze_impossible", "the tokenizer of this model has no mask token")
    token_ids = []
    for word in cloze.words:
        ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            detail = f"the word {word!r} is {len(ids)} tokens for this model, or unknown to it; it must be one"
            raise ModelError("cloze_impossible", detail)
        token_ids.append(ids[0])
    if len(set(token_ids)) != len(token_ids):
        raise ModelError(
            "cloze_impossible", f"two of the words {', '.join(cloze.words)} are one token for this model"
        )
    return torch.tensor(token_ids, dtype=torch.int64)


def with_gaps(
    tokenizer: PreTrainedTokenizerBase, template: Template, rows: Sequence[Mapping[str, str]], limit: int
) -> list[list[int]]:
    """Token ids of each row in the template, at most `limit`; the longest value of a row that is too long is cut.

    Raises DataError (cloze_too_long) if the template alone exceeds the limit.
    """
    clean_rows = [{name: value.replace(tokenizer.mask_token, " ") for name, value in row.items()} for row in rows]

    def encode(values: Sequence[Mapping[str, str]]) -> list[list[int]]:
        texts = [fill_gap(template, row, tokenizer.mask_token) for row in values]
        ids: list[list[int]] = tokenizer(texts, verbose=False)["input_ids"]
        return ids

    return [
        ids if len(ids) <= limit else truncate_values(tokenizer, lambda values: encode([values]), row, limit)[0]
        for ids, row in zip(encode(clean_rows), clean_rows, strict=True)
    ]


def fill_gap(template: Template, row: Mapping[str, str], gap: str) -> str:
    """The template with a row's values and `gap` in its gap."""
    return template.fill({**row, GAP: gap})


def truncate_values(
    tokenizer: PreTrainedTokenizerBase,
    encode: Callable[[Mapping[str, str]], list[list[int]]],
    row: Mapping[str, str],
    limit: int,
) -> list[list[int]]:
    """The encodings of a row, whose longest value is cut until none of them has more than `limit` tokens.

    Raises DataError (cloze_too_long) if no value is left to cut.
    """
    values = dict(row)
    while True:
        sequences = encode(values)
        length = max(map(len, sequences))
        if length <= limit:
            return sequences
        longest = max(values, key=lambda name: (len(values[name]), name), default=None)
        if longest is None or not values[longest]:
            raise DataError("cloze_too_long", f"the cloze template alone has {length} tokens, the limit is {limit}")
        tokens = tokenizer(values[longest], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = tokens["offset_mapping"][: max(0, len(tokens["input_ids"]) - (length - limit))]
        values[longest] = values[longest][: offsets[-1][1]] if offsets else ""
