"""Labels of rows: the class that a value names, in any spelling."""

import math
import unicodedata
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated.protocol import FailureFacts
from tests.support.tiny_models import write_rows
from worker_agent.settings import AgentSettings, DatasetSettings
from worker_agent.training.data import load_split
from worker_agent.training.job_errors import DataError
from worker_agent.training.labels import LabelNames, label_counts, label_indices
from worker_agent.training.summary import describe_dataset
from worker_agent.training.tables import Table

COMPOSED, DECOMPOSED = "\u00c4rzte", "A\u0308rzte"
READABLE = {"label": "label"}


def table_of(cells: Sequence[Any]) -> Table:
    return Table("mine", {"text": ["x"] * len(cells), "label": list(cells)})


def refusal(labels: Sequence[str], cells: Sequence[Any]) -> DataError:
    with pytest.raises(DataError) as caught:
        label_indices(table_of(cells), labels, READABLE)
    return caught.value


class TestAName:
    @pytest.mark.parametrize("value", ["1", 1, 1.0, "1.0", " 1", "1e0", "+1", "01", Decimal("1.00"), np.float32(1)])
    @pytest.mark.parametrize("labels", [("1", "2", "3"), ("0", "1", "2"), ("1", "0"), ("two", "1")])
    def test_goes_before_an_index_for_every_type(self, labels: tuple[str, ...], value: Any) -> None:
        assert label_indices(table_of([value]), labels, READABLE) == [labels.index("1")]

    def test_means_the_same_class_on_a_node_with_text_and_on_one_with_integers(self, tmp_path: Path) -> None:
        found = []
        for node, cells in {"a": ["1", "2", "3"], "b": [1, 2, 3]}.items():
            path = write_rows(tmp_path / f"{node}.jsonl", [{"text": "x", "label": cell} for cell in cells])
            settings = AgentSettings(datasets={node: DatasetSettings(path=path, held_out=0)})
            found.append(label_indices(load_split(settings, node).train, ("1", "2", "3"), READABLE))
        assert found == [[0, 1, 2], [0, 1, 2]]

    @pytest.mark.parametrize(
        ("labels", "value", "index"),
        [
            ((COMPOSED, "b"), DECOMPOSED, 0),
            ((DECOMPOSED, "b"), COMPOSED, 0),
            ((COMPOSED, DECOMPOSED), DECOMPOSED, 1),
            (("red", "green"), " red", 0),
            (("red", "green"), "green\u00a0", 1),
            (("red ", "green"), "red", 0),
            (("red", " red"), " red", 1),
            (("true", "false"), False, 1),
            (("True", "False"), True, 0),
            (("true", "false"), "FALSE", 1),
            (("1", "1.0"), "1.0", 1),
            (("1.0", "1"), 1, 1),
            (("0.5", "1.5"), 1.5, 1),
            (("7", "007"), "007", 1),
            (("007", "008"), 7, 0),
            (("nan", "None"), "None", 1),
            (("null", "NA", "1e5"), "NA", 1),
            (("100000", "b"), "1e5", 0),
            (("", "b"), "", 0),
        ],
    )
    def test_is_compared_as_a_person_reads_it(self, labels: tuple[str, ...], value: Any, index: int) -> None:
        assert label_indices(table_of([value]), labels, READABLE) == [index]

    @pytest.mark.parametrize(
        ("labels", "value"),
        [
            (("red", " red"), "red  "),
            (("1", "1.0"), "01"),
            (("1", "01"), 1.0000001),
            (("TRUE", "true"), True),
            (("A\u030a", "\u00c5", "b"), "\u212b"),
            (("Red", "green"), "red"),
            (("1", "2"), True),
            (("true", "false"), 1),
            (("yes", "no"), True),
        ],
    )
    def test_that_could_be_two_labels_or_none_is_refused(self, labels: tuple[str, ...], value: Any) -> None:
        assert refusal(labels, [value]).code == "data_unknown_label"


class TestAnIndex:
    @pytest.mark.parametrize("value", [1, 1.0, "1", "1.0", " 1", np.int64(1), Decimal(1)])
    @pytest.mark.parametrize("labels", [("red", "green"), ("LABEL_0", "LABEL_1"), ("grade 0", "grade 1", "unknown")])
    def test_is_taken_where_no_label_says_another_number(self, labels: tuple[str, ...], value: Any) -> None:
        assert label_indices(table_of([value]), labels, READABLE) == [1]

    @pytest.mark.parametrize("labels", [("2", "3"), ("2", "other"), ("1 star", "2 stars"), ("flu", "covid-19")])
    def test_is_refused_where_a_label_says_another_number(self, labels: tuple[str, ...]) -> None:
        error = refusal(labels, [0, labels[1]])
        assert (error.code, error.facts) == ("data_unknown_label", FailureFacts(column="label", count=1, of=2))
        assert "index" not in error.detail

    @pytest.mark.parametrize("value", [2, -1, 0.5, "2", "1e400000", 1e300, math.inf, "0x1", "1_0", "\u00b2"])
    def test_is_a_whole_number_below_the_number_of_labels(self, value: Any) -> None:
        assert refusal(("red", "green"), [value]).code == "data_unknown_label"


class TestNoValue:
    @pytest.mark.parametrize(
        "nothing", [None, math.nan, np.float32("nan"), Decimal("nan"), pandas.NA, pandas.NaT, "", "  "]
    )
    @pytest.mark.parametrize("labels", [("None", "nan", "<NA>", "NaT"), ("red", "green")])
    def test_is_no_class_however_it_is_written(self, labels: tuple[str, ...], nothing: Any) -> None:
        error = refusal(labels, [labels[0], nothing])
        assert (error.code, error.facts) == ("data_column_missing", FailureFacts(column="label", count=1, of=2))
        assert error.detail == "mine, row 1: no value for 'label'; fill it in, or remove the row"

    @pytest.mark.parametrize("label", ['"label": null', '"label": NaN', '"other": "None"'])
    def test_in_json_is_null_nan_and_a_key_that_is_not_there(self, tmp_path: Path, label: str) -> None:
        rows = '{"text": "a", "label": "None"}\n{"text": "b", ' + label + "}\n"
        (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
        settings = AgentSettings(datasets={"mine": DatasetSettings(path=tmp_path / "rows.jsonl", held_out=0)})
        with pytest.raises(DataError, match=r"data_column_missing: mine, rows\.jsonl line 2: no value for 'label'"):
            label_indices(load_split(settings, "mine").train, ("None", "nan"), READABLE)

    def test_in_a_csv_is_a_row_one_cell_short(self, tmp_path: Path) -> None:
        (tmp_path / "rows.csv").write_text("text,label\na,None\nb\n", encoding="utf-8")
        settings = AgentSettings(datasets={"mine": DatasetSettings(path=tmp_path / "rows.csv", held_out=0)})
        with pytest.raises(DataError, match=r"data_column_missing: mine, rows\.csv line 3: no value for 'label'"):
            label_indices(load_split(settings, "mine").train, ("None", "nan"), READABLE)


class TestRefusals:
    def test_an_unknown_label_is_named_with_its_row_and_what_there_is(self) -> None:
        error = refusal(("a", "b"), ["a", "c"])
        assert error.detail == "mine, row 1: label 'c' is not one of: a, b (or an index below 2)"
        assert error.facts == FailureFacts(column="label", count=1, of=2)

    def test_of_many_labels_some_are_listed(self) -> None:
        listed = str(LabelNames([f"x{'y' * number}" for number in range(30)]))
        assert listed.endswith("and 10 more (or an index below 30)")

    @pytest.mark.parametrize(("value", "kind"), [(["a"], "list"), ({"a": 1}, "dict"), (b"a", "bytes")])
    def test_a_label_that_is_neither_text_nor_number_is_named_by_its_type(self, value: Any, kind: str) -> None:
        error = refusal(("a", "b"), ["a", value])
        assert (error.code, error.facts) == ("data_column_type", FailureFacts(column="label", count=1, of=2))
        assert "mine, row 1: column 'label' (label) holds a value of type " + kind in error.detail

    def test_a_class_label_is_its_name_in_a_parquet_file_too(self, tmp_path: Path) -> None:
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["b", "a"])}
        )
        rows = [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}]
        datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "rows.parquet")
        settings = AgentSettings(datasets={"mine": DatasetSettings(path=tmp_path / "rows.parquet", held_out=0)})
        assert label_indices(load_split(settings, "mine").train, ("a", "b"), READABLE) == [0, 1]


class TestCounts:
    def test_values_that_are_one_label_are_counted_as_one(self) -> None:
        cells = [1, 1.0, "1", " 1", Decimal("1.00"), COMPOSED, DECOMPOSED, f"{COMPOSED} ", None, math.nan, ""]
        assert label_counts([table_of(cells)], READABLE, None) == {"1": 5, COMPOSED: 3, "(no value)": 3}

    def test_the_federations_labels_count_by_the_same_matching(self) -> None:
        tables = [table_of([1, "2"]), table_of([1.0, "1"])]
        assert label_counts(tables, READABLE, ("1", "2", "3")) == {"1": 3, "2": 1, "3": 0}

    def test_a_description_shows_no_value_as_such(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "rows.jsonl", [{"text": "x", "label": one} for one in ("None", None, "None")])
        settings = AgentSettings(datasets={"mine": DatasetSettings(path=path)})
        assert describe_dataset(settings, "mine").label_counts == {"None": 2, "(no value)": 1}


WORDS = ("red", "green", COMPOSED, "None", "nan", "x y")
NUMBERS = ("0", "1", "2", "3", "10", "007")
TRUTHS = ("true", "false")


@st.composite
def label_sets(draw: st.DrawFn) -> tuple[str, ...]:
    return tuple(draw(st.lists(st.sampled_from(WORDS + NUMBERS + TRUTHS), min_size=2, max_size=6, unique=True)))


def written(label: str) -> st.SearchStrategy[Any]:
    """Every way in which a person or a program writes this label."""
    ways: list[Any] = [label, f" {label}", f"{label}\t", unicodedata.normalize("NFD", label)]
    if label in NUMBERS:
        number = int(label)
        ways += [number, float(number), f"{number}.0", np.int32(number), np.float64(number), Decimal(number)]
    if label in TRUTHS:
        ways += [label == "true", label.upper(), np.bool_(label == "true")]
    return st.sampled_from(ways)


class TestEveryValueAndEveryLabelSet:
    @given(st.data())
    def test_a_label_is_itself_however_it_is_written(self, data: st.DataObject) -> None:
        labels = data.draw(label_sets())
        label = data.draw(st.sampled_from(labels))
        assert label_indices(table_of([data.draw(written(label))]), labels, READABLE) == [labels.index(label)]

    @given(label_sets(), st.integers(-1, 11), st.sampled_from([int, float, str, Decimal, np.int64, np.float32]))
    def test_a_number_is_the_label_of_that_number_or_an_index_and_never_both(
        self, labels: tuple[str, ...], number: int, kind: Any
    ) -> None:
        named = [index for index, label in enumerate(labels) if label in NUMBERS and int(label) == number]
        if named:
            expected = named[0]
        elif set(labels) & {*NUMBERS, *TRUTHS} or not 0 <= number < len(labels):
            assert refusal(labels, [kind(number)]).code == "data_unknown_label"
            return
        else:
            expected = number
        assert label_indices(table_of([kind(number)]), labels, READABLE) == [expected]

    @given(
        label_sets(),
        st.sampled_from([[], ["1"], {}, {"a": "1"}, b"1", date(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC), 1j]),
    )
    def test_what_has_no_text_is_refused_by_its_type(self, labels: tuple[str, ...], value: Any) -> None:
        assert refusal(labels, [value]).code == "data_column_type"
