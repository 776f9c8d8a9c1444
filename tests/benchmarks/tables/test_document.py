"""Rendering of tables as Markdown, and their insertion into a README."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.tables.definition import JobResult, Row, Table
from benchmarks.tables.document import BEGIN, END, document, markdown, to_target, write_between
from tests.benchmarks.tables.samples import job_result

ROWS = (
    Row("one", "a", {}, {}, cells={"passes": "40"}),
    Row("two", "a", {}, {}),
    Row("three", "a", {}, {}),
)
TABLE = Table(name="a", rows=ROWS, rounds=4, seeds=(0, 1))
RUNS = [
    job_result("one", "subj", 0, 0.5),
    job_result("one", "subj", 1, 0.6),
    job_result("one", "trec", 0, 0.25),
    job_result("two", "trec", 1, 1.0),
]


def test_a_row_has_means_and_deviations_and_a_dash_where_nothing_was_run() -> None:
    # The deviation of 50 and 60 is 10 / sqrt(2).
    assert markdown(TABLE, RUNS).splitlines() == [
        "| | passes | subj | trec | bytes down | bytes up | seconds |",
        "|---|---|--:|--:|--:|--:|--:|",
        "| one | 40 | 55.0 ± 7.1 | 25.0 | 16,384 | 1,600 | 30 |",
        "| two | | – | 100.0 | 16,384 | 1,600 | 31 |",
        "| three | | – | – | – | – | – |",
    ]


class TestToATarget:
    TABLE = replace(TABLE, target=0.9, tasks=("subj", "trec"))

    def test_the_first_evaluation_that_reached_it_counts(self) -> None:
        runs = [self._run("one", 0, {2: 0.4, 4: 0.5}), self._run("one", 1, {2: 0.6, 4: 0.5})]
        runs += [self._run("two", 0, {2: 0.1, 4: 0.2}), self._run("two", 1, {2: 0.44, 4: 0.45})]
        assert to_target(self.TABLE, runs).splitlines() == [
            "| | subj, 45.0 % | trec, – |",
            "|---|--:|--:|",
            "| one | 3.0 MB, 30 s (2 of 2) | – |",
            "| two | 4.0 MB, 40 s (1 of 2) | – |",
            "| three | – | – |",
        ]
        (never,) = [run for run in runs if run.row == "two" and run.seed == 0]
        assert "0 of 1" in to_target(self.TABLE, [*runs[:2], never])

    def test_stands_below_the_table_and_says_what_it_is(self) -> None:
        text = document(self.TABLE, RUNS, "command", "two at once")
        assert "To the target, which is 90 % of the first row's last accuracy" in text
        assert text.endswith(to_target(self.TABLE, RUNS))

    @staticmethod
    def _run(row: str, seed: int, accuracies: dict[int, float]) -> JobResult:
        evaluations = {
            number: {"accuracy": accuracy, "bytes": number * 1e6, "seconds": number * 10.0}
            for number, accuracy in accuracies.items()
        }
        return replace(job_result(row, "subj", seed, 0.0), evaluations=evaluations)


def test_own_accuracies_have_a_column_of_their_own() -> None:
    evaluations = {4: {"accuracy": 0.5, "own_accuracy": 0.75}}
    table = replace(TABLE, rows=ROWS[1:2], tasks=("subj",), test_shares=True)
    assert markdown(table, [replace(job_result("two", "subj", 0, 0.5), evaluations=evaluations)]).splitlines() == [
        "| | subj | subj, own | bytes down | bytes up | seconds |",
        "|---|--:|--:|--:|--:|--:|",
        "| two | 50.0 | 75.0 | 16,384 | 1,600 | 30 |",
    ]


def test_the_command_stands_above_the_table_and_the_appendix_below() -> None:
    text = document(replace(TABLE, appendix=lambda: "more"), RUNS, "python -m benchmarks.tables a", "two at once")
    command, caption, table, appendix = text.split("\n\n")
    assert command == "`python -m benchmarks.tables a`"
    assert "20 clients (Dirichlet 0.5), 5 drawn a round; rounds: 4; seeds: 0, 1." in caption
    assert caption.endswith("two at once.")
    assert table == markdown(TABLE, RUNS)
    assert appendix == "more"


class TestAReadme:
    def test_has_the_text_between_its_marks_and_nothing_else_changed(self, tmp_path: Path) -> None:
        readme = tmp_path / "README.md"
        readme.write_text(f"# a\n\n{BEGIN}\nold\n{END}\n\nrest\n", encoding="utf-8")
        write_between(readme, "new")
        assert readme.read_text(encoding="utf-8") == f"# a\n\n{BEGIN}\nnew\n{END}\n\nrest\n"

    def test_without_marks_gets_them_at_its_end(self, tmp_path: Path) -> None:
        readme = tmp_path / "README.md"
        readme.write_text("# a\n", encoding="utf-8")
        for text in ("first", "second"):
            write_between(readme, text)
        assert readme.read_text(encoding="utf-8") == f"# a\n\n## Measured\n\n{BEGIN}\nsecond\n{END}\n"

    @pytest.mark.parametrize("text", [BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}"])
    def test_whose_marks_are_no_pair_is_left_as_it_is(self, tmp_path: Path, text: str) -> None:
        readme = tmp_path / "README.md"
        readme.write_text(text, encoding="utf-8")
        with pytest.raises(SystemExit, match="needs one line"):
            write_between(readme, "new")
        assert readme.read_text(encoding="utf-8") == text
