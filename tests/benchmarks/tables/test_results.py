"""The store of job results, from which a table is continued."""

from pathlib import Path

import pytest

from benchmarks.tables.results import Results
from tests.benchmarks.tables.samples import job_result

FIRST, SECOND = job_result("one", "subj", 0, 0.5), job_result("two", "subj", 0, 0.75)


def test_what_was_added_is_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    for run in (FIRST, SECOND):
        Results(file).add(run)
    again = Results(file)
    assert FIRST.key in again
    assert again.of([SECOND.key, "unknown", FIRST.key]) == [SECOND, FIRST]


def test_a_line_that_was_being_written_is_run_again(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    Results(file).add(FIRST)
    with file.open("a", encoding="utf-8") as torn:
        torn.write('{"key": "two')
    Results(file).add(SECOND)
    assert Results(file).of([FIRST.key, SECOND.key]) == [FIRST, SECOND]


@pytest.mark.parametrize("line", ["no JSON", "[]", '{"key": "one"}', '{"evaluations": {"1": {}}}'])
def test_a_file_of_something_else_is_refused_by_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "runs.jsonl"
    Results(file).add(FIRST)
    file.write_text(f"{file.read_text('utf-8')}{line}\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"runs\.jsonl, line 2: not a finished run"):
        Results(file)


def test_without_a_file_runs_are_kept_in_memory() -> None:
    results = Results(None)
    results.add(FIRST)
    assert results.of([FIRST.key]) == [FIRST]
