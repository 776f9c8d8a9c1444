"""Rows to tokens: what a model sees, what a loss counts, and what is cut."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from federated.protocol import FailureFacts, TaskDefinition, TextTemplate
from tests.support.tiny_models import bert_folder
from worker_agent.training.data import Table
from worker_agent.training.refusals import DataError
from worker_agent.training.tokens import Examples, Tokenisation, load_tokenizer, tokenise

CPU = torch.device("cpu")
COLORS = TaskDefinition(task="sequence_classification", labels=("red", "green"))
ANSWER = TaskDefinition(task="causal_lm", template=TextTemplate(prompt="say {what} :", response="{answer}"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(bert_folder(tmp_path_factory.mktemp("models") / "bert"))


def examples_of(rows: Mapping[str, list[Any]], task: TaskDefinition, tokenizer: Any, **how: Any) -> Examples:
    chosen = {"columns": {name: name for name in rows}, "limit": 32, "segments": True, **how}
    return tokenise(Table("mine", rows), Tokenisation(task, tokenizer=tokenizer, **chosen))


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
        assert str(caught.value) == "data_column_missing: mine, row 1: no value for 'text'"

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

    def test_a_value_that_a_row_does_not_have_is_empty_text(self, tokenizer: Any) -> None:
        batch = examples_of({"what": [None], "answer": ["red"]}, ANSWER, tokenizer).batch([0], CPU)
        assert words(tokenizer, batch.inputs["input_ids"][0]) == ["[CLS]", "say", ":", "red", "[SEP]"]

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
