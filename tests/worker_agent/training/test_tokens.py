"""Tokenization of rows: the input of a model, the tokens that a loss counts, and truncation."""

import copy
import datetime
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from federated.protocol import Cloze, FailureFacts, TaskDefinition, TextTemplate
from tests.support.tiny_models import bert_folder
from worker_agent.training.job_errors import DataError
from worker_agent.training.tables import Table
from worker_agent.training.tokens import Examples, Tokenization, load_tokenizer, tokenize
from worker_agent.training.values import texts

REPEAT = TaskDefinition(task="causal_lm")
CLOZE = TaskDefinition(
    task="sequence_classification",
    labels=("red", "green"),
    cloze=Cloze(template="{text} {note} {mask}", words=("cat", "dog")),
)
CPU = torch.device("cpu")
COLORS = TaskDefinition(task="sequence_classification", labels=("red", "green"))
ANSWER = TaskDefinition(task="causal_lm", template=TextTemplate(prompt="say {what} :", response="{answer}"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(bert_folder(tmp_path_factory.mktemp("models") / "bert"))


def examples_of(rows: Mapping[str, list[Any]], task: TaskDefinition, tokenizer: Any, **how: Any) -> Examples:
    chosen = {"columns": {name: name for name in rows}, "limit": 32, "segments": True, **how}
    return tokenize(Table("mine", rows), Tokenization(task, tokenizer=tokenizer, **chosen))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer that adds nothing, as those of GPT-2 and Qwen."""
    found = load_tokenizer(bert_folder(tmp_path_factory.mktemp("models") / "bert"))
    found.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    assert found("").input_ids == []
    return found


def refused(rows: Mapping[str, list[Any]], task: TaskDefinition, tokenizer: Any, **how: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        examples_of(rows, task, tokenizer, **how)
    return caught.value


def words(tokenizer: Any, ids: Any) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens(ids))


class TestClassification:
    def test_a_batch_is_padded_to_its_own_longest_example(self, tokenizer: Any) -> None:
        columns: dict[str, list[Any]] = {
            "text": ["a cat", "the red cat is a dog", "dog"],
            "label": ["red", "green", 0],
        }
        examples = examples_of(columns, COLORS, tokenizer)
        batch = examples.batch([2, 0], CPU)
        assert words(tokenizer, batch.inputs["input_ids"][0]) == ["[CLS]", "dog", "[SEP]", "[PAD]"]
        assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
        assert batch.targets.tolist() == [0, 0]
        assert examples.batch([1], CPU).inputs["input_ids"].shape == (1, 8)

    def test_a_second_text_is_told_from_the_first_where_the_model_can(self, tokenizer: Any) -> None:
        columns: dict[str, list[Any]] = {"text": ["cat"], "other": ["dog bird"], "label": [1]}
        paired = {"columns": {"text": "text", "text_pair": "other", "label": "label"}}
        batch = examples_of(columns, COLORS, tokenizer, **paired).batch([0], CPU)
        assert words(tokenizer, batch.inputs["input_ids"][0]) == ["[CLS]", "cat", "[SEP]", "dog", "bird", "[SEP]"]
        assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1]]
        assert (
            "token_type_ids"
            not in examples_of(columns, COLORS, tokenizer, segments=False, **paired).batch([0], CPU).inputs
        )

    def test_a_long_text_is_cut_and_keeps_its_end_mark(self, tokenizer: Any) -> None:
        examples = examples_of({"text": ["cat dog bird cat dog"], "label": [0]}, COLORS, tokenizer, limit=4)
        assert words(tokenizer, examples.batch([0], CPU).inputs["input_ids"][0]) == ["[CLS]", "cat", "dog", "[SEP]"]

    def test_a_row_without_text_is_named(self, tokenizer: Any) -> None:
        with pytest.raises(DataError) as caught:
            examples_of({"text": ["cat", None], "label": [0, 0]}, COLORS, tokenizer)
        assert str(caught.value) == (
            "data_column_missing: mine, row 1: no value for 'text'; fill it in, or remove the row"
        )

    def test_a_missing_text_column_is_named(self, tokenizer: Any) -> None:
        with pytest.raises(DataError) as caught:
            examples_of({"message": ["cat"], "label": [0]}, COLORS, tokenizer, columns={"text": "text"})
        assert caught.value.detail == "mine has no column 'text' (text); it has: label, message"


class TestInstructions:
    def test_the_loss_counts_the_response_and_its_end_alone(self, tokenizer: Any) -> None:
        columns = {"what": ["the cat", "a"], "answer": ["red .", "blue"]}
        batch = examples_of(columns, ANSWER, tokenizer).batch([0, 1], CPU)
        first = ["[CLS]", "say", "the", "cat", ":", "red", ".", "[SEP]"]
        assert words(tokenizer, batch.inputs["input_ids"][0]) == first
        red, stop, end, blue = tokenizer.convert_tokens_to_ids(["red", ".", "[SEP]", "blue"])
        nothing = -100
        assert batch.targets.tolist() == [
            [nothing] * 5 + [red, stop, end],
            [nothing] * 4 + [blue, end] + [nothing] * 2,
        ]
        assert batch.first_target == 4

    def test_a_long_prompt_is_cut_at_its_end_and_the_response_kept(self, tokenizer: Any) -> None:
        columns = {"what": ["cat dog bird cat dog bird"], "answer": ["red"]}
        batch = examples_of(columns, ANSWER, tokenizer, limit=5).batch([0], CPU)
        assert words(tokenizer, batch.inputs["input_ids"][0]) == ["[CLS]", "say", "cat", "red", "[SEP]"]
        assert batch.first_target == 3

    def test_a_response_longer_than_the_limit_is_cut_and_loses_its_end(self, tokenizer: Any) -> None:
        columns = {"what": ["cat"], "answer": ["red green blue one"]}
        batch = examples_of(columns, ANSWER, tokenizer, limit=4).batch([0], CPU)
        assert words(tokenizer, batch.inputs["input_ids"][0]) == ["[CLS]", "red", "green", "blue"]

    def test_a_value_that_a_row_does_not_have_beside_others_is_an_empty_line(self, tokenizer: Any) -> None:
        columns = {"instruction": ["say", "say"], "input": [None, ""], "output": ["red", "red"]}
        batch = examples_of(columns, REPEAT, tokenizer).batch([0, 1], CPU)
        for row in batch.inputs["input_ids"]:
            assert words(tokenizer, row) == ["[CLS]", "say", "red", "[SEP]"]

    def test_a_column_of_the_template_is_mapped_or_named_as_missing(self, tokenizer: Any) -> None:
        columns = {"question": ["cat"], "answer": ["red"]}
        mapped = examples_of(columns, ANSWER, tokenizer, columns={"what": "question", "answer": "answer"})
        assert "cat" in words(tokenizer, mapped.ids)
        with pytest.raises(DataError) as caught:
            examples_of(columns, ANSWER, tokenizer, columns={"what": "what", "answer": "answer"})
        assert caught.value.detail == "mine has no column 'what' (what); it has: answer, question"
        assert (caught.value.code, caught.value.facts) == ("data_column_missing", FailureFacts(column="what"))

    def test_a_column_that_is_not_listed_is_refused_without_the_schema(self, tokenizer: Any) -> None:
        with pytest.raises(DataError) as caught:
            examples_of({"what": ["a"], "answer": ["b"]}, ANSWER, tokenizer, columns={"answer": "answer"})
        assert (caught.value.code, caught.value.facts) == ("policy_column", FailureFacts(column="what"))


FOREIGN = [["a"], {"body": "a"}, b"a", datetime.date(2026, 1, 1), (1,), 1j, "\ud800"]


class TestValues:
    @pytest.mark.parametrize("value", FOREIGN)
    @pytest.mark.parametrize("column", ["text", "text_pair", "label"])
    def test_a_classifiers_column_holds_text_numbers_and_truth_values(
        self, tokenizer: Any, column: str, value: Any
    ) -> None:
        columns: dict[str, list[Any]] = {"text": ["a", "b"], "text_pair": ["a", "b"], "label": ["red", "red"]}
        error = refused(columns | {column: ["red", value]}, COLORS, tokenizer)
        assert (error.code, error.facts) == ("data_column_type", FailureFacts(column=column, count=1, of=2))
        assert error.detail.startswith(f"mine, row 1: column '{column}' ({column}) holds ")

    @pytest.mark.parametrize("value", FOREIGN)
    @pytest.mark.parametrize(
        ("task", "column"), [(ANSWER, "what"), (ANSWER, "answer"), (CLOZE, "text"), (CLOZE, "note")]
    )
    @pytest.mark.parametrize("decoder", [False, True])
    def test_a_templates_column_holds_them_too(
        self, tokenizer: Any, task: TaskDefinition, column: str, value: Any, decoder: bool
    ) -> None:
        masked = copy.copy(tokenizer)
        masked.mask_token = "[UNK]"
        columns = {name: ["red", "red"] for name in ("what", "answer", "text", "note", "label")}
        error = refused(columns | {column: ["red", value]}, task, masked, decoder=decoder)
        assert (error.code, error.facts) == ("data_column_type", FailureFacts(column=column, count=1, of=2))

    def test_numbers_and_truth_values_are_text(self, tokenizer: Any) -> None:
        values = [3, 3.5, Decimal("3.50"), True, np.int64(3), np.float32(3.5)]
        assert texts(Table("mine", {"text": values}), "text", {"text": "text"}) == (
            ["3", "3.5", "3.50", "True", "3", "3.5"]
        )

    @pytest.mark.parametrize("nothing", [None, math.nan, Decimal("nan"), np.float32("nan")])
    def test_no_value_is_never_the_text_of_a_word(self, tokenizer: Any, nothing: Any) -> None:
        error = refused({"text": ["a", nothing], "label": ["red", "red"]}, COLORS, tokenizer)
        assert (error.code, error.facts) == ("data_column_missing", FailureFacts(column="text", count=1, of=2))
        columns = {"instruction": ["say"], "input": [nothing], "output": ["red"]}
        assert words(tokenizer, examples_of(columns, REPEAT, tokenizer).ids) == ["[CLS]", "say", "red", "[SEP]"]

    def test_a_response_without_a_value_is_refused_with_its_row(self, tokenizer: Any) -> None:
        error = refused({"what": ["a", "b", "c"], "answer": ["red", None, None]}, ANSWER, tokenizer)
        assert (error.code, error.facts) == ("data_column_missing", FailureFacts(column="answer", count=2, of=3))
        assert "mine, row 1: no value for 'answer'" in error.detail

    def test_a_prompt_without_any_value_is_refused_with_its_row(self, tokenizer: Any) -> None:
        columns = {"instruction": ["a", None], "input": [None, None], "output": ["red", "red"]}
        error = refused(columns, REPEAT, tokenizer)
        assert (error.code, error.facts) == ("data_column_missing", FailureFacts(column="instruction", count=1, of=2))
        assert "mine, row 1: no value for 'instruction', 'input'" in error.detail

    @pytest.mark.parametrize("decoder", [False, True])
    def test_a_cloze_without_any_value_is_refused_with_its_row(self, tokenizer: Any, decoder: bool) -> None:
        masked = copy.copy(tokenizer)
        masked.mask_token = "[UNK]"
        columns = {"text": ["a", None, None], "note": [None, "b", None], "label": ["red"] * 3}
        error = refused(columns, CLOZE, masked, decoder=decoder)
        assert (error.code, error.facts) == ("data_column_missing", FailureFacts(column="text", count=1, of=3))
        assert "mine, row 2: no value for 'text', 'note'" in error.detail


class TestASecondText:
    @pytest.mark.parametrize("columns", [{}, {"columns": {"text": "text", "text_pair": "other", "label": "label"}}])
    def test_that_no_row_of_the_data_set_has_is_none(self, tokenizer: Any, columns: Any) -> None:
        rows = {"text": ["cat"], "text_pair": [None], "other": [None], "label": ["red"]}
        table = Table("mine", rows, valueless=frozenset({"text_pair", "other"}))
        how = {"columns": {name: name for name in rows}, "limit": 32, "segments": True, **columns}
        examples = tokenize(table, Tokenization(COLORS, tokenizer=tokenizer, **how))
        assert words(tokenizer, examples.ids) == ["[CLS]", "cat", "[SEP]"]
        assert examples.segments is None

    def test_that_some_rows_have_is_wanted_of_all(self, tokenizer: Any) -> None:
        error = refused({"text": ["a", "b"], "text_pair": ["a", None], "label": ["red"] * 2}, COLORS, tokenizer)
        assert (error.code, error.facts.column) == ("data_column_missing", "text_pair")

    def test_that_the_settings_name_and_the_file_lacks_is_missing(self, tokenizer: Any) -> None:
        mapped = {"columns": {"text": "text", "text_pair": "other", "label": "label"}}
        error = refused({"text": ["a"], "label": ["red"]}, COLORS, tokenizer, **mapped)
        assert (error.code, error.facts.column) == ("data_column_missing", "text_pair")


class TestNoToken:
    @pytest.mark.parametrize("text", ["", "  "])
    def test_a_text_that_is_no_token_is_refused_with_its_row(self, bare: Any, text: str) -> None:
        error = refused({"text": ["cat", text], "label": ["red", "red"]}, COLORS, bare)
        assert (error.code, error.facts) == ("data_text_empty", FailureFacts(column="text", count=1, of=2))
        assert "mine, row 1: the text has no token for this model (text)" in error.detail

    def test_an_empty_text_between_the_marks_of_a_tokenizer_is_read(self, tokenizer: Any) -> None:
        examples = examples_of({"text": [""], "label": ["red"]}, COLORS, tokenizer)
        assert words(tokenizer, examples.ids) == ["[CLS]", "[SEP]"]

    def test_a_prompt_that_is_no_token_is_refused_with_its_row(self, bare: Any) -> None:
        columns = {"instruction": ["say", ""], "input": ["", ""], "output": ["red", "red"]}
        error = refused(columns, REPEAT, bare)
        assert (error.code, error.facts) == ("data_text_empty", FailureFacts(column="instruction", count=1, of=2))
        assert "mine, row 1: the prompt has no token for this model (instruction, input)" in error.detail

    def test_an_empty_response_is_its_end_or_nothing_to_learn(self, bare: Any) -> None:
        columns = {"what": ["cat"], "answer": [""]}
        assert words(bare, examples_of(columns, ANSWER, bare).ids) == ["say", "cat", ":", "[SEP]"]
        endless = copy.copy(bare)
        endless.eos_token = endless.sep_token = None
        error = refused(columns, ANSWER, endless)
        assert (error.code, error.facts) == ("data_text_empty", FailureFacts(column="answer", count=1, of=1))

    def test_a_cloze_with_no_token_before_its_gap_is_refused_with_its_row(self, bare: Any) -> None:
        columns = {"text": ["cat", ""], "note": ["", ""], "label": ["red", "red"]}
        error = refused(columns, CLOZE, bare, decoder=True)
        assert (error.code, error.facts) == ("data_text_empty", FailureFacts(column="text", count=1, of=2))
