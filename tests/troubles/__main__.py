"""A run of the tests that hold the table of troubles: `python -m tests.troubles [ROW ...]`.

Prints each row with its answer and whether its tests passed; ends with 1 if any failed or was not run.
"""

import sys
from collections.abc import Iterator, Sequence

import pytest

from tests.troubles.names import REPOSITORY, is_there
from tests.troubles.rows import ROWS

PASSED = "passed"
OPTIONS = (
    "-q", "-p", "no:cacheprovider", "--tb=short", "--show-capture=no", "--continue-on-collection-errors",
    f"--rootdir={REPOSITORY}",
)  # fmt: skip


class Outcomes:
    """The outcome of each test of a run, without the ids of its parameters."""

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The hook that pytest calls after each step of a test."""
        name = report.nodeid.partition("[")[0]
        if report.failed:
            self.failed.add(name)
        elif report.when == "call" and report.passed:
            self.passed.add(name)

    def of(self, tests: Sequence[str]) -> str:
        """Of a row: passed if each of its tests ran and none failed."""
        names = {test.partition("[")[0] for test in tests}
        if not all(map(is_there, names)):
            return "failed (a test is missing)"
        return PASSED if names <= self.passed - self.failed else "failed"


def table(names: Sequence[str], outcomes: Outcomes) -> Iterator[str]:
    """A line for each row."""
    for name in names:
        yield f"{name:5} {ROWS[name].answer:100} {outcomes.of(ROWS[name].tests)}"


def main(arguments: Sequence[str]) -> int:
    """The exit status of a run over these rows, or over all."""
    unknown = sorted(set(arguments) - set(ROWS))
    if unknown:
        sys.stderr.write(f"troubles: no row {', '.join(unknown)}\n")
        return 2
    names = arguments or list(ROWS)
    tests = [test for test in dict.fromkeys(test for name in names for test in ROWS[name].tests) if is_there(test)]
    outcomes = Outcomes()
    if tests:
        pytest.main([*OPTIONS, *tests], plugins=[outcomes])
    lines = list(table(names, outcomes))
    sys.stdout.write("\n".join(lines) + "\n")
    return int(not all(line.endswith(PASSED) for line in lines))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
