"""Tokenization of rows, once. Batches are cut out of the result and padded to their longest example.

A classifier's example is text (and text_pair), or a cloze with its gap, which a decoder reads with each label word. A
causal model's example is prompt + response + end of sequence, and the loss counts only the response and its end. If
such an example is too long, the prompt is cut at its end. A response that is too long by itself is cut at its end and
then has no end token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from federated import templates
from federated.protocol import Cloze, TaskDefinition, TextTemplate
from federated.task import GAP
from worker_agent.training.cloze import GapBatch, Gaps, with_gaps, word_ids
from worker_agent.training.job_errors import ModelError
from worker_agent.training.labels import label_indices
from worker_agent.training.multiple_choice import Choices, with_words
from worker_agent.training.tables import Table
from worker_agent.training.values import refuse_empty, rows_of_text, texts

IGNORE_INDEX = -100


@dataclass(frozen=True, slots=True)
class Tokenization:
    """Parameters of tokenization: the task, the readable columns, and at most `limit` tokens per example.

    `decoder`: the model has no masked-language head, so it fills a gap by continuing the text.
    """

    task: TaskDefinition
    columns: Mapping[str, str]
    tokenizer: PreTrainedTokenizerBase
    limit: int
    segments: bool
    decoder: bool = False


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Some examples on a device. `inputs` are the model's.

    `targets` are (examples,) labels, or token ids of the inputs' shape with -100 where there is no target.
    `first_target` is the first position with a target. `cloze`: the gaps and the words that may fill them.
    """

    indices: Sequence[int]
    inputs: Mapping[str, Tensor]
    targets: Tensor
    first_target: int
    cloze: GapBatch | None = None

    @property
    def examples(self) -> int:
        return len(self.indices)

    @property
    def mask(self) -> Tensor:
        return self.inputs["attention_mask"].bool()


@dataclass(frozen=True, slots=True)
class Examples:
    """Tokenized examples end to end: sequence i is `ids[offsets[i]:offsets[i + 1]]` (int32).

    An example is one sequence, or with `choices` one for each word. `targets` (int64) are class indices, or the start
    of the response in each example of a causal model. `segments` (int8) distinguishes text from text_pair, or is None
    if the model does not need it.
    """

    ids: Tensor
    offsets: Sequence[int]
    targets: Tensor
    segments: Tensor | None
    pad_id: int
    causal: bool
    gaps: Gaps | None = None
    choices: Choices | None = None

    def __len__(self) -> int:
        return (len(self.offsets) - 1) // self._sequences_each

    def length(self, index: int) -> int:
        """Tokens of an example, summed over the words of a choice."""
        return self.offsets[(index + 1) * self._sequences_each] - self.offsets[index * self._sequences_each]

    def batch(self, indices: Sequence[int], device: torch.device) -> TokenBatch:
        """These examples, padded on the right to the longest of them; for choices, with the word of their class."""
        if self.choices is None:
            return self._batch(indices, indices, self.targets[list(indices)], device)
        right = self.choices.true_words(indices, self.targets)
        return self._batch(indices, right, self.choices.starts[list(indices)], device)

    def with_every_word(self, choices: Choices, indices: Sequence[int], device: torch.device) -> TokenBatch:
        """These examples with each word, example by example."""
        every = choices.all_words(indices)
        owners = [sequence // choices.words for sequence in every]
        return self._batch(owners, every, choices.starts[owners], device)

    @property
    def _sequences_each(self) -> int:
        return 1 if self.choices is None else self.choices.words

    def _batch(
        self, indices: Sequence[int], sequences: Sequence[int], targets: Tensor, device: torch.device
    ) -> TokenBatch:
        lengths = torch.tensor([self.offsets[one + 1] - self.offsets[one] for one in sequences])
        ids = self._pad(self.ids, sequences, self.pad_id)
        positions = torch.arange(ids.shape[1])
        inputs = {"input_ids": ids, "attention_mask": (positions < lengths[:, None]).long()}
        if self.segments is not None:
            inputs["token_type_ids"] = self._pad(self.segments, sequences, 0)
        first_target = int(targets.min()) if self.causal else 0
        if self.causal:
            response = (positions >= targets[:, None]) & (positions < lengths[:, None])
            targets = torch.where(response, ids, IGNORE_INDEX)
        device_inputs = {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
        cloze = None if self.gaps is None else self.gaps.batch(indices)
        return TokenBatch(indices, device_inputs, targets.to(device, non_blocking=True), first_target, cloze)

    def _pad(self, flat: Tensor, sequences: Sequence[int], filler: int) -> Tensor:
        pieces = [flat[self.offsets[one] : self.offsets[one + 1]] for one in sequences]
        return pad_sequence(pieces, batch_first=True, padding_value=filler).long()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer in a model's folder, with a padding token.

    Raises ModelError (model_missing), also for an empty vocabulary, which the library creates if files are missing.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder), use_fast=True)
    except (OSError, ValueError) as error:
        raise ModelError("model_missing", f"no tokenizer in {folder}: {error}") from error
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ModelError("model_missing", f"{folder} has no tokenizer: no file there has a vocabulary")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def tokenize(table: Table, options: Tokenization) -> Examples:
    """All rows of `table` as examples.

    Raises DataError for a missing column or value, a value that is not text, an unknown label, and a row without a
    token for the model.
    """
    if options.task.task == "causal_lm":
        return _instruction_examples(table, options)
    if options.task.cloze is not None:
        return (
            _choice_examples(table, options, options.task.cloze)
            if options.decoder
            else _gap_examples(table, options, options.task.cloze)
        )
    return _text_examples(table, options)


def _text_examples(table: Table, options: Tokenization) -> Examples:
    if table.rows == 0:
        return _examples([], [], None, options)
    pair = texts(table, "text_pair", options.columns) if _is_paired(table, options.columns) else None
    first = texts(table, "text", options.columns)
    targets = label_indices(table, options.task.labels or (), options.columns)
    encoding = options.tokenizer(
        first,
        pair,
        truncation=True,
        max_length=options.limit,
        return_attention_mask=False,
        return_token_type_ids=True,
    )
    refuse_empty(table, ["text"], map(len, encoding["input_ids"]), "the text has no token for this model")
    segments = encoding["token_type_ids"] if options.segments and pair is not None else None
    return _examples(encoding["input_ids"], targets, segments, options)


def _is_paired(table: Table, columns: Mapping[str, str]) -> bool:
    """Whether rows have a second text. A column without any value does not count.

    If the settings map the column explicitly, it must exist; otherwise it is optional.
    """
    actual = columns.get("text_pair")
    if actual is None or actual in table.valueless:
        return False
    return actual != "text_pair" or actual in table.columns


def _gap_examples(table: Table, options: Tokenization, cloze: Cloze) -> Examples:
    words = word_ids(options.tokenizer, cloze)
    if table.rows == 0:
        return _examples([], [], None, options, Gaps(torch.zeros(0, dtype=torch.int64), words))
    values = _values(table, options, cloze)
    rows = with_gaps(options.tokenizer, templates.parse(cloze.template), values, options.limit)
    positions = torch.tensor([row.index(options.tokenizer.mask_token_id) for row in rows])
    targets = label_indices(table, options.task.labels or (), options.columns)
    return _examples(rows, targets, None, options, Gaps(positions, words))


def _choice_examples(table: Table, options: Tokenization, cloze: Cloze) -> Examples:
    if table.rows == 0:
        return _examples([], [], None, options, choices=Choices(len(cloze.words), torch.zeros(0, dtype=torch.int64)))
    rows, starts = with_words(options.tokenizer, cloze, _values(table, options, cloze), options.limit)
    refuse_empty(table, templates.parse(cloze.template).columns, starts, "this model has no token before the gap")
    targets = label_indices(table, options.task.labels or (), options.columns)
    choices = Choices(len(cloze.words), torch.tensor(starts, dtype=torch.int64))
    return _examples(rows, targets, None, options, choices=choices)


def _values(table: Table, options: Tokenization, cloze: Cloze) -> list[dict[str, str]]:
    """The values of the columns that a template names, row by row."""
    names = [name for name in templates.parse(cloze.template).columns if name != GAP]
    return rows_of_text(table, names, options.columns)


def _instruction_examples(table: Table, options: Tokenization) -> Examples:
    if table.rows == 0:
        return _examples([], [], None, options)
    template = options.task.template or TextTemplate()
    prompt, response = templates.parse(template.prompt), templates.parse(template.response)
    prompt_texts = [prompt.fill(row) for row in rows_of_text(table, prompt.columns, options.columns)]
    response_rows = rows_of_text(table, response.columns, options.columns, every=True)
    response_texts = [response.fill(row) for row in response_rows]
    end = (
        options.tokenizer.eos_token_id
        if options.tokenizer.eos_token_id is not None
        else options.tokenizer.sep_token_id
    )
    end_ids = [] if end is None else [end]
    prompts = [
        ids[:-1] if ids[-1:] == end_ids else ids
        for ids in options.tokenizer(prompt_texts, verbose=False)["input_ids"]
    ]
    responses = options.tokenizer(response_texts, add_special_tokens=False, verbose=False)["input_ids"]
    responses = [ids + end_ids for ids in responses]
    refuse_empty(table, prompt.columns, map(len, prompts), "the prompt has no token for this model")
    refuse_empty(table, response.columns, map(len, responses), "the response has no token for this model")
    sequences = [_join(before, after, options.limit) for before, after in zip(prompts, responses, strict=True)]
    rows, starts = [ids for ids, _ in sequences], [start for _, start in sequences]
    return _examples(rows, starts, None, options)


def _join(prompt: list[int], response: list[int], limit: int) -> tuple[list[int], int]:
    # At least one token of the prompt stays, because it predicts the first token of the response.
    kept_prompt = prompt[: max(1, limit - len(response))]
    return (kept_prompt + response)[:limit], len(kept_prompt)


def _examples(
    rows: Sequence[Sequence[int]],
    targets: Sequence[int],
    segments: Sequence[Sequence[int]] | None,
    options: Tokenization,
    gaps: Gaps | None = None,
    choices: Choices | None = None,
) -> Examples:
    return Examples(
        ids=_flat(rows, torch.int32),
        offsets=[0, *accumulate(map(len, rows))],
        targets=torch.tensor(targets, dtype=torch.int64),
        segments=None if segments is None else _flat(segments, torch.int8),
        pad_id=int(options.tokenizer.pad_token_id or 0),
        causal=options.task.task == "causal_lm" or choices is not None,
        gaps=gaps,
        choices=choices,
    )


def _flat(rows: Sequence[Sequence[int]], dtype: torch.dtype) -> Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=dtype)
