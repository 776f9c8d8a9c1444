"""Store of job results in a file of JSON lines, from which an interrupted table is continued."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from benchmarks.tables.definition import JobResult


class Results:
    """Results by key: those of the file and those added. Without a file they are held only in memory."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._runs: dict[str, JobResult] = {}
        if file is not None and file.exists():
            self._runs = {run.key: run for run in _read(file)}

    def __contains__(self, key: str) -> bool:
        return key in self._runs

    def add(self, run: JobResult) -> None:
        """Store a result. It is written to the file before this returns."""
        self._runs[run.key] = run
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(run)) + "\n")

    def of(self, keys: Iterable[str]) -> list[JobResult]:
        """The stored results for these keys."""
        return [self._runs[key] for key in keys if key in self._runs]


def _read(file: Path) -> Iterable[JobResult]:
    text = file.read_text(encoding="utf-8")
    whole, _, torn = text.rpartition("\n")
    if torn:
        # The program ended while it wrote this line. The next line must not be appended to it.
        file.write_text(whole + "\n" if whole else "", encoding="utf-8")
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            fields = json.loads(line)
            evaluations = {int(number): metrics for number, metrics in fields.pop("evaluations").items()}
            yield JobResult(**fields, evaluations=evaluations)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SystemExit(f"{file}, line {number}: not a finished run of a table ({error})") from error
