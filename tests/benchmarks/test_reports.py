"""The report line of a benchmark: printed and parsed; without one the benchmark does not hold."""

import json

import pytest

from benchmarks.__main__ import parse_report
from benchmarks.report import print_report


def test_the_printed_report_is_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    print_report("speed", 0.25, "s", target=0.5, holds=True, details={"rounds": 3})
    assert parse_report("speed", capsys.readouterr().out, 0) == {
        "benchmark": "speed",
        "figure": 0.25,
        "unit": "s",
        "target": 0.5,
        "holds": True,
        "details": {"rounds": 3},
    }


@pytest.mark.parametrize(
    ("last_line", "exit_status", "problem"),
    [
        ("", 1, "exit status 1"),
        ("all went well", 0, "its last line is not a report"),
        ("[1, 2]", 0, "its last line is not a report"),
        (json.dumps({"benchmark": "another", "holds": True}), 0, "its last line is not a report"),
        (json.dumps({"benchmark": "speed", "holds": True}), -9, "exit status -9"),
    ],
)
def test_what_is_no_report_does_not_hold(last_line: str, exit_status: int, problem: str) -> None:
    report = parse_report("speed", last_line, exit_status)
    assert report["holds"] is False
    assert report["details"] == {"problem": problem}
