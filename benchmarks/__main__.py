"""Runner of all benchmarks, one after another: `python -m benchmarks`. Exits with 1 if one misses its target."""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.discovery import Benchmark, find_benchmarks


def run(name: str) -> dict[str, Any]:
    """Run one benchmark in its own process, echo its output, and return the report in its last line.

    For a benchmark that fails or prints no report, the returned report has `holds` false.
    """
    print(f"== {name}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last = line if line.strip() else last
    return parse_report(name, last, process.returncode)


def parse_report(name: str, last_line: str, exit_status: int) -> dict[str, Any]:
    """The report in the last line that a benchmark printed. See `run`."""
    try:
        report = json.loads(last_line)
    except ValueError:
        report = None
    if exit_status == 0 and isinstance(report, dict) and report.get("benchmark") == name and "holds" in report:
        return report
    problem = f"exit status {exit_status}" if exit_status else "its last line is not a report"
    return {
        "benchmark": name,
        "figure": None,
        "unit": "",
        "target": None,
        "holds": False,
        "details": {"problem": problem},
    }


def summary_table(reports: Sequence[Mapping[str, Any]]) -> Table:
    """One line per report."""
    table = Table(title="benchmarks")
    for column in ("benchmark", "figure", "target", "unit", "holds"):
        table.add_column(column, justify="right" if column in {"figure", "target"} else "left")
    for report in reports:
        figure = report["details"].get("problem", "") if report["figure"] is None else f"{report['figure']:.4g}"
        target = "" if report["target"] is None else f"{report['target']:g}"
        table.add_row(report["benchmark"], figure, target, report["unit"], "yes" if report["holds"] else "NO")
    return table


def _list(benchmarks: Sequence[Benchmark]) -> None:
    for benchmark in benchmarks:
        targets = ", ".join(f"{name} {number:g}" for name, number in benchmark.targets.items())
        print(f"{benchmark.name}: {benchmark.summary} [targets: {targets}]")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    benchmarks = find_benchmarks()
    names = [benchmark.name for benchmark in benchmarks]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"benchmarks to run (default: all), of: {', '.join(names)}"
    )
    parser.add_argument("--list", action="store_true", help="list the benchmarks and run none")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(names)):
        parser.error(f"there is no benchmark {unknown[0]!r}; known: {', '.join(names)}")
    if options.list:
        _list(benchmarks)
        return 0
    reports = [run(name) for name in names if name in options.names or not options.names]
    Console().print(summary_table(reports))
    for report in reports:
        print(json.dumps(report), flush=True)
    return 0 if all(report["holds"] for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
