"""Tables in READMEs: each is the rendering of its stored results."""

from pathlib import Path

import pytest

from benchmarks.tables import definition
from benchmarks.tables.__main__ import readme
from benchmarks.tables.document import BEGIN, END, markdown, to_target
from benchmarks.tables.jobs import jobs_of
from benchmarks.tables.results import Results

RUNS = Path(definition.__file__).parent / "runs"


@pytest.mark.parametrize("name", [file.stem for file in sorted(RUNS.glob("*.jsonl"))])
def test_a_readme_shows_what_the_runs_told(name: str) -> None:
    table = definition.table(name)
    keys = [job.key() for job in jobs_of(table)]
    runs = Results(RUNS / f"{name}.jsonl").of(keys)
    text = readme(name).read_text(encoding="utf-8")
    if len(runs) < len(keys):
        # An unfinished table, or one whose rows or numbers changed, stands in no README.
        assert f"{BEGIN}\n{END}" in text
        return
    assert markdown(table, runs) in text
    assert table.target is None or to_target(table, runs) in text
