"""Files of rows: values are read unchanged, and faults are refused by file and line."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from tests.support.tiny_models import write_rows
from worker_agent.settings import AgentSettings, DatasetSettings
from worker_agent.training.data import load_split
from worker_agent.training.job_errors import DataError
from worker_agent.training.tables import Table
from worker_agent.training.values import texts

READABLE = {"text": "text", "label": "label"}


def read(path: Path, content: str | bytes) -> Table:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return table_at(path)


def table_at(path: Path) -> Table:
    settings = AgentSettings(datasets={"mine": DatasetSettings(path=path, held_out=0)})
    return load_split(settings, "mine").train


def refusal(path: Path, content: str | bytes, code: str = "data_missing") -> str:
    with pytest.raises(DataError) as caught:
        read(path, content)
    assert caught.value.code == code
    assert code == "data_empty" or path.name in caught.value.detail
    return caught.value.detail


class TestCsv:
    def test_a_row_with_more_cells_than_the_header_is_refused_with_its_line(self, tmp_path: Path) -> None:
        detail = refusal(tmp_path / "rows.csv", 'label,text\nred,"well, the\ncat"\n\nred,well, the cat\n')
        assert "line 5 has 3 cells and the header 2: label, text; a text with a comma in it stands in" in detail

    @pytest.mark.parametrize("header", ["text,label,text", "text,label, text"])
    def test_a_column_that_the_header_names_twice_is_refused(self, tmp_path: Path, header: str) -> None:
        detail = refusal(tmp_path / "rows.csv", f"{header}\na,b,c\n")
        assert "line 1: the header has the column 'text' twice" in detail

    def test_a_lone_quotation_mark_does_not_swallow_the_rows_after_it(self, tmp_path: Path) -> None:
        detail = refusal(tmp_path / "rows.csv", 'text,label\na,red\n"b,red\nc,red\n')
        assert "the row that begins on line 3 is not CSV" in detail

    def test_a_column_without_a_name_is_none_but_nothing_may_be_lost_in_it(self, tmp_path: Path) -> None:
        assert read(tmp_path / "rows.csv", ",text,label\n0,a,red\n").columns == {"text": ["a"], "label": ["red"]}
        assert read(tmp_path / "rows.csv", "label,text,\nred,a,\n").columns == {"text": ["a"], "label": ["red"]}
        assert "line 2 has 3 cells and the header 2" in refusal(tmp_path / "rows.csv", "label,text,\nred,well, the\n")

    def test_a_cell_of_any_length_is_read(self, tmp_path: Path) -> None:
        long = "word " * 60_000
        assert read(tmp_path / "rows.csv", f"text,label\n{long},red\n").columns["text"] == [long]

    @pytest.mark.parametrize("cell", ["null", "NA", "None", "nan", "1e5", "007", "1.0", "TRUE", ""])
    def test_cells_stay_the_text_that_they_are(self, tmp_path: Path, cell: str) -> None:
        table = read(tmp_path / "rows.csv", f"text,label\n{cell},red\n")
        assert texts(table, "text", READABLE) == [cell]

    def test_a_row_that_is_short_has_no_value_there(self, tmp_path: Path) -> None:
        assert read(tmp_path / "rows.csv", "text,label\na\n").columns == {"text": ["a"], "label": [None]}

    @pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\n", b"text,label\n"])
    def test_without_rows_is_empty(self, tmp_path: Path, content: bytes) -> None:
        assert refusal(tmp_path / "rows.csv", content, "data_empty") == "mine has no rows"

    @pytest.mark.parametrize("content", ["text;label\na;red\n", "text\tlabel\na\tred\n", "label, text\nred,a\n"])
    def test_other_separators_are_refused_with_the_columns_seen(self, tmp_path: Path, content: str) -> None:
        table = read(tmp_path / "rows.csv", content)
        with pytest.raises(DataError) as caught:
            texts(table, "text", READABLE)
        assert caught.value.code == "data_column_missing"
        assert ", ".join(sorted(table.columns)) in caught.value.detail

    def test_a_tsv_file_is_refused_by_its_ending(self, tmp_path: Path) -> None:
        assert "rows.tsv is neither" in refusal(tmp_path / "rows.tsv", "text\tlabel\na\tred\n")


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
class TestEncodings:
    @pytest.mark.parametrize(("encoding", "byte"), [("utf-16", "0xff"), ("latin-1", "0xe4")])
    def test_other_than_utf_8_are_refused_with_the_byte(
        self, tmp_path: Path, name: str, encoding: str, byte: str
    ) -> None:
        content = 'text,label\n"kräftig",red\n' if name.endswith("csv") else '{"text": "kräftig"}\n'
        assert byte in refusal(tmp_path / name, content.encode(encoding))

    def test_a_byte_order_mark_is_no_part_of_the_rows(self, tmp_path: Path, name: str) -> None:
        content = "text\nkräftig\n" if name.endswith("csv") else '{"text": "kräftig"}\n'
        assert read(tmp_path / name, content.encode("utf-8-sig")).columns == {"text": ["kräftig"]}


class TestJson:
    def test_lines_may_end_as_on_windows(self, tmp_path: Path) -> None:
        assert read(tmp_path / "rows.jsonl", '{"text": "a"}\r\n\r\n{"text": "b"}\r\n').columns == {"text": ["a", "b"]}

    @pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
    @pytest.mark.parametrize("indent", [None, 2])
    @pytest.mark.parametrize("start", ["", "\n ", "\ufeff"])
    def test_an_array_of_objects_is_read(self, tmp_path: Path, name: str, indent: int | None, start: str) -> None:
        rows = [{"text": "a", "label": "red"}, {"text": "b"}]
        table = read(tmp_path / name, start + json.dumps(rows, indent=indent))
        assert table.columns == {"label": ["red", None], "text": ["a", "b"]}
        assert table.place(1) == f"mine, {name} row 1"

    @pytest.mark.parametrize("content", ["", "\ufeff", "\n \n", "[]"])
    def test_without_rows_is_empty(self, tmp_path: Path, content: str) -> None:
        assert refusal(tmp_path / "rows.jsonl", content, "data_empty") == "mine has no rows"

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ('{"text": "a"}\n{"text"\n', "line 2 is not JSON"),
            ('{\n  "text": "a"\n}\n', "line 1 is not JSON"),
            ('"a"\n', "line 1 is not a JSON object"),
            ('[{"text": "a"}, "b"]', "row 1 of the array is not a JSON object"),
            ('["a"]\n["b"]\n', "it begins as an array and is not JSON (Extra data"),
            ('{"text": "a"}\n{"text": "b", "text": "c"}\n', "line 2 has 'text' twice in one object"),
            ("[" * 100_000, "nested too deeply"),
            ('{"text": ' + "1" * 5000 + "}\n", "line 1 Exceeds the limit"),
        ],
    )
    def test_what_is_no_object_is_refused_with_its_line(self, tmp_path: Path, content: str, problem: str) -> None:
        assert problem in refusal(tmp_path / "rows.json", content)

    def test_the_line_of_the_file_is_told_and_not_the_place_in_the_draw(self, tmp_path: Path) -> None:
        rows: list[dict[str, Any]] = [{"text": f"row {number}"} for number in range(50)]
        path = write_rows(tmp_path / "rows.jsonl", [*rows, {"text": None}])
        for seed in range(5):
            settings = AgentSettings(datasets={"mine": DatasetSettings(path=path, split_seed=seed)})
            split = load_split(settings, "mine")
            part = split.train if None in split.train.columns["text"] else split.held_out
            with pytest.raises(DataError, match=r"mine, rows\.jsonl line 51: no value for 'text'"):
                texts(part, "text", READABLE)


class TestParquet:
    def test_a_struct_in_place_of_text_is_refused_by_its_type(self, tmp_path: Path) -> None:
        rows = [{"text": {"body": "a"}, "label": "red"}]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
        with pytest.raises(DataError, match=r"data_column_type: mine, rows\.parquet row 0: .* a value of type dict"):
            texts(table_at(tmp_path / "rows.parquet"), "text", READABLE)

    def test_labels_that_are_encoded_as_a_dictionary_are_read(self, tmp_path: Path) -> None:
        labels = pyarrow.array(["red", "green", "red"]).dictionary_encode()
        parquet.write_table(pyarrow.table({"label": labels}), tmp_path / "rows.parquet")
        assert table_at(tmp_path / "rows.parquet").columns == {"label": ["red", "green", "red"]}

    def test_a_folder_of_shards_is_refused_by_name(self, tmp_path: Path) -> None:
        (tmp_path / "shards").mkdir()
        parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "shards" / "0.parquet")
        with pytest.raises(DataError, match=r"data_missing: mine: .*shards cannot be read"):
            table_at(tmp_path / "shards")

    def test_a_column_that_is_there_twice_is_refused(self, tmp_path: Path) -> None:
        columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
        parquet.write_table(pyarrow.Table.from_arrays(columns, ["text", "text"]), tmp_path / "rows.parquet")
        with pytest.raises(DataError, match="data_missing"):
            table_at(tmp_path / "rows.parquet")
