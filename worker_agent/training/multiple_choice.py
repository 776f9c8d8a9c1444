"""Classification with a decoder: it reads a text with each label word in the gap, and predicts the likeliest."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from federated import templates
from federated.protocol import Cloze
from federated.task import GAP
from worker_agent.training.cloze import fill_gap, truncate_values
from worker_agent.training.job_errors import ModelError

FIRST_GAP = "the cloze template begins with its gap, and this model has no token before it"


@dataclass(frozen=True, slots=True)
class Choices:
    """Choices of all examples: the number of `words`, and the first position `starts` (examples,) that differs."""

    words: int
    starts: Tensor

    def true_words(self, indices: Sequence[int], classes: Tensor) -> list[int]:
        """Indices of these examples' sequences with the word of their class."""
        return [index * self.words + int(classes[index]) for index in indices]

    def all_words(self, indices: Sequence[int]) -> list[int]:
        """Indices of these examples' sequences with each word, example by example."""
        return [index * self.words + word for index in indices for word in range(self.words)]


def with_words(
    tokenizer: PreTrainedTokenizerBase, cloze: Cloze, rows: Sequence[Mapping[str, str]], limit: int
) -> tuple[list[list[int]], list[int]]:
    """Token ids of each row with each word, row by row, at most `limit`, and each row's first differing position.

    The longest value of a row that is too long is cut, equally for all words. The end token that some tokenizers
    append to every text is left out. A position of 0 means that the row's text before the gap has no token.

    Raises ModelError (cloze_impossible) for indistinguishable words and a template that begins with its gap,
    DataError (cloze_too_long) if the template alone exceeds the limit.
    """
    _refuse_unknown(tokenizer, cloze)
    word_count, template = len(cloze.words), templates.parse(cloze.template)
    encodings = _encode(tokenizer, [fill_gap(template, row, word) for row in rows for word in cloze.words])
    sequences, starts = [], []
    for number, row in enumerate(rows):
        row_encodings = encodings[number * word_count : (number + 1) * word_count]
        if max(map(len, row_encodings)) > limit:
            row_encodings = truncate_values(
                tokenizer,
                lambda values: _encode(tokenizer, [fill_gap(template, values, word) for word in cloze.words]),
                row,
                limit,
            )
        starts.append(_first_difference(cloze, row_encodings))
        if starts[-1] == 0 and template.fields[0] == GAP:
            raise ModelError("cloze_impossible", FIRST_GAP)
        sequences += row_encodings
    return sequences, starts


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    encodings: list[list[int]] = tokenizer(list(texts), verbose=False)["input_ids"]
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    return [ids[:-1] if end is not None and ids[-1:] == [end] else ids for ids in encodings]


def _refuse_unknown(tokenizer: PreTrainedTokenizerBase, cloze: Cloze) -> None:
    for word in cloze.words:
        if tokenizer.unk_token_id in tokenizer(f" {word}", add_special_tokens=False)["input_ids"]:
            raise ModelError("cloze_impossible", f"the word {word!r} is unknown to this model's tokenizer")


def _first_difference(cloze: Cloze, encodings: Sequence[Sequence[int]]) -> int:
    """The first position at which the tokens differ between words."""
    pairs = zip(cloze.words, encodings, strict=True)
    for (one, first), (other, second) in itertools.combinations(sorted(pairs, key=lambda pair: len(pair[1])), 2):
        if first == second[: len(first)]:
            same = f"the words {one!r} and {other!r} are the same tokens for this model"
            begins = f"in this template the tokens with the word {one!r} are the first of {other!r}"
            raise ModelError("cloze_impossible", same if len(first) == len(second) else begins)
    return next(place for place, tokens in enumerate(zip(*encodings, strict=False)) if len(set(tokens)) > 1)
