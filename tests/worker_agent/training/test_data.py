"""Data sets by name from files of every kind, and the errors for those that do not suit the task."""

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from tests.support.tiny_models import bert_folder, color_rows, write_rows
from worker_agent.settings import AgentSettings, DatasetSettings
from worker_agent.training.data import fingerprint, load_split
from worker_agent.training.job_errors import DataError
from worker_agent.training.labels import label_indices
from worker_agent.training.summary import describe_dataset

ROWS = [{"text": f"row {number}", "label": "ab"[number % 2]} for number in range(10)]


def node(**chosen: Any) -> AgentSettings:
    return AgentSettings(datasets={"mine": DatasetSettings(**chosen)})


def refusal(settings: AgentSettings, name: str = "mine") -> DataError:
    with pytest.raises(DataError) as caught:
        load_split(settings, name)
    return caught.value


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


def write_lines(path: Path) -> None:
    write_rows(path, ROWS)


class TestReading:
    @pytest.mark.parametrize(
        ("name", "write"), [("rows.jsonl", write_lines), ("rows.csv", write_csv), ("rows.parquet", write_parquet)]
    )
    def test_a_file_of_any_kind_gives_the_same_rows(self, tmp_path: Path, name: str, write: Any) -> None:
        write(tmp_path / name)
        split = load_split(node(path=tmp_path / name, held_out=0), "mine")
        assert split.train.columns == {"text": [row["text"] for row in ROWS], "label": [row["label"] for row in ROWS]}
        assert split.held_out.rows == 0

    def test_a_datasets_folder_with_parts_brings_its_own_test_part(self, tmp_path: Path) -> None:
        parts = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:3])}
        datasets.DatasetDict(parts).save_to_disk(tmp_path / "folder")
        split = load_split(node(path=tmp_path / "folder"), "mine")
        assert (split.train.rows, split.held_out.rows) == (10, 3)

    def test_a_class_label_of_a_datasets_folder_becomes_its_name(self, tmp_path: Path) -> None:
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["b", "a"])}
        )
        datasets.Dataset.from_list(ROWS, features=features).save_to_disk(tmp_path / "folder")
        split = load_split(node(path=tmp_path / "folder", held_out=0), "mine")
        assert label_indices(split.train, ("a", "b"), {"label": "label"}) == [0, 1] * 5

    def test_a_hub_name_that_is_a_local_folder_is_loaded_by_datasets(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        write_rows(tmp_path / "train.jsonl", ROWS)
        split = load_split(node(hub=str(tmp_path), held_out=0), "mine")
        assert split.train.columns["text"] == [row["text"] for row in ROWS]

    def test_a_row_without_a_value_has_none_there(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "rows.jsonl", [{"text": "a"}, {"label": 1}])
        split = load_split(node(path=path, held_out=0), "mine")
        assert split.train.columns == {"text": ["a", None], "label": [None, 1]}


class TestSplit:
    def test_the_held_out_rows_are_drawn_by_the_seed_and_never_trained_on(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "rows.jsonl", ROWS)
        parts = [load_split(node(path=path, held_out=0.3, split_seed=seed), "mine") for seed in (1, 1, 2)]
        first, again, other = [
            (list(split.train.columns["text"]), list(split.held_out.columns["text"])) for split in parts
        ]
        assert first == again != other
        assert sorted(first[0] + first[1]) == sorted(row["text"] for row in ROWS)
        assert len(first[1]) == 3

    def test_a_test_path_takes_the_place_of_the_draw(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "rows.jsonl", ROWS)
        test_path = write_rows(tmp_path / "test.jsonl", ROWS[:2])
        split = load_split(node(path=path, test_path=test_path), "mine")
        assert (split.train.rows, split.held_out.rows) == (10, 2)

    def test_a_column_has_no_value_only_if_neither_part_has_one(self, tmp_path: Path) -> None:
        cells = {"text": "a", "none": None, "blank": " ", "tested": None, "trained": "b"}
        path = write_rows(tmp_path / "rows.jsonl", [cells] * 2)
        test_path = write_rows(tmp_path / "test.jsonl", [cells | {"tested": "c", "trained": None, "blank": ""}])
        split = load_split(node(path=path, test_path=test_path), "mine")
        assert split.train.valueless == split.held_out.valueless == {"none", "blank"}
        assert load_split(node(path=path), "mine").held_out.valueless == {"none", "blank", "tested"}

    def test_a_changed_file_has_another_fingerprint(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "rows.jsonl", ROWS)
        before = fingerprint(DatasetSettings(path=path))
        assert fingerprint(DatasetSettings(path=path)) == before
        write_rows(path, ROWS[:9])
        assert fingerprint(DatasetSettings(path=path)) != before


class TestRefusals:
    def test_an_unknown_data_set_names_those_there_are(self) -> None:
        error = refusal(node(path="x.jsonl"), "yours")
        assert error.code == "data_missing"
        assert error.detail == "this node has no data set 'yours'; it has: mine"

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        error = refusal(node(path=tmp_path / "gone.jsonl"))
        assert error.code == "data_missing"
        assert "gone.jsonl" in error.detail

    def test_a_file_of_an_unknown_ending_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "rows.pickle").write_bytes(b"")
        assert "neither JSONL, CSV nor Parquet" in refusal(node(path=tmp_path / "rows.pickle")).detail

    def test_a_broken_line_is_named_by_its_number(self, tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n{broken\n", encoding="utf-8")
        error = refusal(node(path=tmp_path / "rows.jsonl"))
        assert error.code == "data_missing"
        assert "line 2 is not JSON" in error.detail

    @pytest.mark.parametrize("name", ["rows.parquet", "folder"])
    def test_damaged_files_are_refused_and_not_a_crash(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        path.mkdir() if name == "folder" else path.write_bytes(b"PAR1 not parquet")
        assert refusal(node(path=path)).code == "data_missing"

    def test_a_data_set_without_rows_is_empty(self, tmp_path: Path) -> None:
        error = refusal(node(path=write_rows(tmp_path / "rows.jsonl", [])))
        assert (error.code, error.detail) == ("data_empty", "mine has no rows")

    @pytest.mark.parametrize("chosen", [{}, {"path": "a.jsonl", "hub": "b"}])
    def test_exactly_one_of_path_and_hub_is_needed(self, chosen: dict[str, str]) -> None:
        assert "exactly one of path and hub" in refusal(node(**chosen)).detail

    def test_a_hub_name_that_cannot_be_loaded_is_missing(self, tmp_path: Path) -> None:
        assert refusal(node(hub=str(tmp_path))).code == "data_missing"


class TestSummary:
    def test_a_summary_counts_rows_labels_and_tokens(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "rows.jsonl", color_rows(20))
        model = bert_folder(tmp_path / "bert")
        summary = describe_dataset(node(path=path, held_out=0.2), "mine", tokenizer_path=str(model))
        assert (summary.rows, summary.held_out_rows, summary.columns) == (16, 4, ("label", "text"))
        assert sum(summary.label_counts.values()) == 20
        assert summary.token_lengths == {"median": 7, "p90": 7, "p99": 7, "max": 7}

    def test_a_summary_counts_the_tokens_of_numbers_and_of_rows_without_a_value(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "rows.jsonl", [{"text": 0}, {"text": None}])
        summary = describe_dataset(
            node(path=path, held_out=0), "mine", tokenizer_path=str(bert_folder(tmp_path / "b"))
        )
        assert summary.token_lengths == {"median": 3, "p90": 3, "p99": 3, "max": 3}
        assert summary.label_counts == {}

    def test_a_summary_refuses_what_no_federation_could_read(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "rows.jsonl", [{"text": ["a"], "label": "b"}])
        with pytest.raises(DataError, match=r"data_column_type: mine, rows\.jsonl line 1: column 'text'"):
            describe_dataset(node(path=path), "mine", tokenizer_path=str(bert_folder(tmp_path / "b")))

    def test_a_summary_by_the_federations_labels_refuses_others(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "rows.jsonl", color_rows(20))
        counts = describe_dataset(node(path=path), "mine", labels=("red", "green", "blue", "black")).label_counts
        assert sum(counts.values()) == 20
        assert counts["black"] == 0
        with pytest.raises(DataError, match="data_unknown_label"):
            describe_dataset(node(path=path), "mine", labels=("red", "green"))
