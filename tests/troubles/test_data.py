"""Troubles with data: values that are not what they seem, files of another form, rows with nothing in them.

The row of the log is in each test's name.
"""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from pyarrow import parquet
from pydantic import ValidationError

from federated.protocol import TaskDefinition, TextTemplate
from federated.trainable import Lora
from tests.support.tiny_models import bert_folder, color_rows
from tests.support.training import train_some_steps, work_of
from tests.troubles.reading import LIMIT, Reader, bare_tokenizer, json_lines
from worker_agent.settings import AgentSettings
from worker_agent.training.session import Session, open_session
from worker_agent.training.tokens import load_tokenizer

RED = {"text": "the cat", "label": "red"}
REPEAT = TaskDefinition(task="causal_lm")


def of(*labels: str) -> TaskDefinition:
    return TaskDefinition(task="sequence_classification", labels=labels)


COLORS = of("red", "green", "blue")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_folder(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def reader(model: Path, tmp_path: Path) -> Reader:
    return Reader(tmp_path, load_tokenizer(model))


def session_over(settings: AgentSettings, model: Path) -> Session:
    node = settings.model_copy(update={"models": {"bert": str(model)}, "device": "cpu"})
    return open_session(work_of("bert", Lora(r=2)), "mine", node, 3, {})


def instructions(**changes: Any) -> str:
    return json_lines([{"instruction": "say", "input": "a cat", "output": "red"} | changes])


def test_d01_labels_of_two_nodes_are_the_same_classes_whatever_their_type(reader: Reader) -> None:
    text, number = ([{"text": "a", "label": kind(one)} for one in (1, 2)] for kind in (str, int))
    for labels, classes in {("1", "2", "3"): [0, 1], ("2", "1"): [1, 0], ("0", "1", "2"): [1, 2]}.items():
        assert reader.classes("a.jsonl", json_lines(text), of(*labels)) == classes
        assert reader.classes("b.jsonl", json_lines(number), of(*labels)) == classes
    assert reader.classes("c.jsonl", json_lines(number), COLORS) == [1, 2]
    assert reader.refusal("d.jsonl", json_lines(number), of("2", "3", "4"))[0] == "data_unknown_label"


def test_d03_no_value_is_no_class_and_no_text(reader: Reader) -> None:
    labels = of("None", "nan", "Severe")
    for nothing in ("null", "NaN"):
        rows = '{"text": "a", "label": "None"}\n{"text": "b", "label": ' + nothing + "}\n"
        code, detail = reader.refusal("a.jsonl", rows, labels)
        assert (code, "a.jsonl line 2: no value for 'label'" in detail) == ("data_column_missing", True)
    assert reader.refusal("b.csv", "text,label\na,None\nb\n", labels)[0] == "data_column_missing"
    assert reader.refusal("c.jsonl", json_lines([RED | {"text": None}]), COLORS)[0] == "data_column_missing"


@pytest.mark.parametrize("value", [["the", "cat"], {"body": "the cat"}, [{"role": "user", "content": "hi"}]])
def test_d05_lists_and_objects_are_no_text(reader: Reader, value: Any) -> None:
    code, detail = reader.refusal("a.jsonl", json_lines([RED | {"text": value}]), COLORS)
    kind = type(value).__name__
    assert (code, f"a.jsonl line 1: column 'text' (text) holds a value of type {kind}" in detail) == (
        "data_column_type",
        True,
    )
    for column in ("instruction", "output"):
        assert reader.refusal("b.jsonl", instructions(**{column: value}), REPEAT)[0] == "data_column_type"


def test_d05_bytes_are_no_text(reader: Reader) -> None:
    parquet.write_table(pyarrow.table({"text": [b"the cat"], "label": ["red"]}), reader.folder / "a.parquet")
    content = (reader.folder / "a.parquet").read_bytes()
    assert reader.refusal("a.parquet", content, COLORS)[0] == "data_column_type"


@pytest.mark.parametrize("content", ["label,text\nred,well, the cat\n", "text,label,text\na,red,b\n"])
def test_d06_a_csv_that_does_not_fit_its_header_is_refused_with_the_line(reader: Reader, content: str) -> None:
    code, detail = reader.refusal("a.csv", content, COLORS)
    assert (code, "a.csv cannot be read: line" in detail) == ("data_missing", True)


def test_d08_a_long_cell_is_read(reader: Reader) -> None:
    assert reader.classes("a.csv", "text,label\n" + "cat " * 40_000 + ",red\n", COLORS) == [0]


def test_d09_a_byte_order_mark_is_no_part_of_a_row(reader: Reader) -> None:
    assert reader.classes("a.jsonl", b"\xef\xbb\xbf" + json_lines([RED]).encode(), COLORS) == [0]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_d10_a_file_of_no_bytes_is_empty(reader: Reader, name: str) -> None:
    assert reader.refusal(name, b"", COLORS) == ("data_empty", "mine has no rows")


def test_d12_a_row_of_no_token_is_refused_with_its_line(model: Path, tmp_path: Path) -> None:
    reader = Reader(tmp_path, bare_tokenizer(model))
    code, detail = reader.refusal("a.jsonl", json_lines([RED, RED | {"text": ""}]), COLORS)
    assert (code, "a.jsonl line 2" in detail) == ("data_text_empty", True)
    task = TaskDefinition(task="causal_lm", template=TextTemplate(prompt="{instruction}", response="{output}"))
    assert reader.refusal("b.jsonl", instructions(instruction=""), task)[0] == "data_text_empty"


def test_d13_a_whole_float_is_its_integer(reader: Reader) -> None:
    assert reader.classes("a.jsonl", json_lines([RED | {"label": 1.0}]), of("0", "1")) == [1]
    assert reader.classes("b.csv", "text,label\na,2.0\n", of("2", "1")) == [0]


def test_d14_labels_are_compared_in_one_form_of_unicode(reader: Reader) -> None:
    composed = "\u00c4rzte"
    rows = json_lines([RED | {"label": unicodedata.normalize("NFD", composed)}])
    assert reader.classes("a.jsonl", rows, of("Pflege", composed)) == [1]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_d15_a_json_array_is_read(reader: Reader, name: str) -> None:
    assert reader.classes(name, json.dumps([RED, RED | {"label": "blue"}], indent=1), COLORS) == [0, 2]


def test_d16_words_for_no_value_are_words_in_a_csv(reader: Reader) -> None:
    cells = ["null", "NA", "None", "nan", "1e5", "007"]
    content = "text,label\n" + "".join(f"a,{cell}\n" for cell in cells)
    assert reader.classes("a.csv", content, of(*cells)) == list(range(6))


def test_d17_lines_may_end_as_on_windows(reader: Reader) -> None:
    assert reader.classes("a.jsonl", json_lines([RED, RED]).replace("\n", "\r\n"), COLORS) == [0, 0]


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        ("text;label\na;red\n", "text;label"),
        ("text\tlabel\na\tred\n", "text\tlabel"),
        ("label, text\nred,a\n", " text"),
    ],
)
def test_d18_another_separator_is_refused_with_the_columns_seen(reader: Reader, content: str, seen: str) -> None:
    code, detail = reader.refusal("a.csv", content, COLORS)
    assert (code, seen in detail) == ("data_column_missing", True)
    assert reader.refusal("a.tsv", content, COLORS)[0] == "data_missing"


@pytest.mark.parametrize(("encoding", "byte"), [("utf-16", "0xff"), ("latin-1", "0xe4")])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_d19_another_encoding_is_refused_with_the_byte(reader: Reader, name: str, encoding: str, byte: str) -> None:
    content = "text,label\nkr\u00e4ftig,red\n" if name == "a.csv" else json_lines([RED | {"text": "kr\u00e4ftig"}])
    code, detail = reader.refusal(name, content.encode(encoding), COLORS)
    assert (code, byte in detail) == ("data_missing", True)


def test_d20_one_class_and_repeated_rows_train_under_the_federations_labels(reader: Reader, model: Path) -> None:
    session = session_over(reader.settings("a.jsonl", json_lines([RED] * 10), held_out=0.2), model)
    assert all(torch.tensor(train_some_steps(session)).isfinite())
    config: Any = session.model.config
    assert config.num_labels == 3
    assert session.evaluate()["examples"] == 2


def test_d21_without_held_out_rows_there_are_no_metrics(reader: Reader, model: Path) -> None:
    for rows, held_out in ((1, 0.1), (8, 0)):
        content = json_lines(color_rows(rows))
        session = session_over(reader.settings("a.jsonl", content, held_out=held_out), model)
        assert session.examples == rows
        assert all(torch.tensor(train_some_steps(session)).isfinite())
        assert session.evaluate() == {"examples": 0.0}


def test_d22_a_struct_is_refused_and_an_encoded_column_read(reader: Reader) -> None:
    labels = pyarrow.array(["red", "blue"]).dictionary_encode()
    for name, text in {"plain": ["a", "b"], "struct": [{"body": "a"}, {"body": "b"}]}.items():
        parquet.write_table(pyarrow.table({"text": text, "label": labels}), reader.folder / f"{name}.parquet")
    contents = {name: (reader.folder / f"{name}.parquet").read_bytes() for name in ("plain", "struct")}
    assert reader.classes("plain.parquet", contents["plain"], COLORS) == [0, 2]
    assert reader.refusal("struct.parquet", contents["struct"], COLORS)[0] == "data_column_type"


def test_d23_a_prompt_and_a_response_that_fill_the_window_leave_something_to_learn(reader: Reader) -> None:
    for changes in ({"instruction": "cat " * 15_000}, {"output": "dog " * 15_000}):
        examples = reader.examples("a.jsonl", instructions(**changes), REPEAT)
        batch = examples.batch([0], torch.device("cpu"))
        assert batch.inputs["input_ids"].shape == (1, LIMIT)
        assert batch.first_target >= 1
        assert (batch.targets[0] >= 0).any()


@pytest.mark.parametrize("value", ["", None])
def test_d24_an_input_without_a_value_is_an_empty_line(reader: Reader, value: str | None) -> None:
    assert reader.words("a.jsonl", instructions(input=value), REPEAT) == ["[CLS] say red [SEP]"]


@pytest.mark.parametrize("template", ["{instruction", "instruction}", "{instruction!r}"])
def test_d26_a_template_that_is_none_is_refused_before_any_node_sees_it(template: str) -> None:
    with pytest.raises(ValidationError, match="prompt"):
        TextTemplate(prompt=template, response="{output}")


@pytest.mark.parametrize("columns", [None, {"text": "text", "label": "label", "text_pair": "text_pair"}])
def test_d27_a_second_text_that_no_row_has_is_none(reader: Reader, columns: Any) -> None:
    rows = json_lines([RED | {"text_pair": None}] * 2)
    assert reader.words("a.jsonl", rows, COLORS, columns=columns) == ["[CLS] the cat [SEP]"] * 2
    rows = json_lines([RED | {"text_pair": "dog"}, RED | {"text_pair": None}])
    assert reader.refusal("b.jsonl", rows, COLORS, columns=columns)[0] == "data_column_missing"


def test_d28_the_end_counts_where_it_also_pads(model: Path, tmp_path: Path) -> None:
    tokenizer = bare_tokenizer(model)
    tokenizer.pad_token = tokenizer.eos_token
    rows = instructions() + instructions(output="red . . .")
    batch = Reader(tmp_path, tokenizer).examples("a.jsonl", rows, REPEAT).batch([0, 1], torch.device("cpu"))
    learnt = [row[row >= 0].tolist() for row in batch.targets]
    assert [row.count(tokenizer.eos_token_id) for row in learnt] == [1, 1]
    assert [row[-1] for row in learnt] == [tokenizer.eos_token_id] * 2


def test_d29_a_text_of_half_a_million_characters_is_cut(reader: Reader) -> None:
    (words,) = reader.words("a.jsonl", json_lines([RED | {"text": "cat " * 142_500}]), COLORS)
    assert words.split() == ["[CLS]", *["cat"] * (LIMIT - 2), "[SEP]"]


def test_d30_a_response_without_a_value_is_refused_with_its_line(reader: Reader) -> None:
    code, detail = reader.refusal("a.jsonl", instructions() + instructions(output=None), REPEAT)
    assert (code, "a.jsonl line 2: no value for 'output'" in detail) == ("data_column_missing", True)
    assert reader.refusal("b.jsonl", instructions(instruction=None, input=None), REPEAT)[0] == "data_column_missing"
