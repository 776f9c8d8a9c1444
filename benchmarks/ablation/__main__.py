"""Ablation of the control plane: the worth of each mechanism, by `python -m benchmarks.ablation --write FILE`.

Every run is `benchmarks.control_plane` over a copy of the sources, as it is (the baseline) or without mechanisms.
Mechanisms are first switched off one at a time. Then they are taken out one after the other, the cheapest first, each
on top of those that are already out, and stay out as long as both figures stay within 10 % of the baseline's: the
99th percentile from an offer to its lease, and processor time for each agent and second of web, background and
database. Results are kept in FILE, one JSON object a line, so that an interrupted run goes on where it stopped.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablation.mechanisms import MECHANISMS, Mechanism, switch_off

_ROOT = Path(__file__).parents[2]
_SOURCES = ("alembic", "benchmarks", "coordinator", "examples", "federated", "worker_agent", "pyproject.toml")
_TOLERANCE = 1.1
_ROLES = ("web", "background", "database")
Figures = Mapping[str, float]


class Runs:
    """Finished runs by the names of the mechanisms that were off, in a file of JSON lines."""

    def __init__(self, file: Path, options: Sequence[str]) -> None:
        self._file, self._options = file, options
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        documents = [json.loads(line) for line in lines if line.endswith("}")]
        self._figures: dict[tuple[str, ...], Figures] = {
            tuple(document["off"]): document["figures"] for document in documents
        }

    def figures(self, off: Sequence[Mechanism]) -> Figures:
        """The figures without these mechanisms, measured unless the file has them."""
        key = tuple(mechanism.name for mechanism in off)
        if key not in self._figures:
            self._figures[key] = figures_of(measure(off, self._options))
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"off": key, "figures": self._figures[key]}) + "\n")
            print(f"without {', '.join(key) or 'nothing'}: {self._figures[key]}", flush=True)
        return self._figures[key]


def measure(off: Sequence[Mechanism], options: Sequence[str]) -> dict[str, Any]:
    """The report of `benchmarks.control_plane` without these mechanisms. Raises SystemExit if it made none."""
    with tempfile.TemporaryDirectory(prefix="ablation-") as folder:
        root = Path(folder)
        for name in _SOURCES:
            source = _ROOT / name
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, root)
        for mechanism in off:
            switch_off(mechanism, root)
        command = [sys.executable, "-m", "benchmarks.control_plane", *options]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.splitlines()
    if not lines or not lines[-1].startswith("{"):
        raise SystemExit(f"benchmarks.control_plane ended with {done.returncode} and no report")
    report: dict[str, Any] = json.loads(lines[-1])
    return report


def figures_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Of each engine: the 99th percentile in ms, and processor microseconds for each agent and second; and errors."""
    details = report["details"]
    figures: dict[str, float] = {}
    for engine in (name for name in ("sqlite", "postgresql") if name in details):
        result = details[engine]
        figures[f"{engine}_p99_milliseconds"] = round(result["p99_milliseconds"], 1)
        for role in _ROLES:
            if role in result["processor_shares"]:
                share = result["processor_shares"][role]
                figures[f"{engine}_{role}_microseconds"] = round(1e6 * share / details["agents"], 1)
        figures[f"{engine}_errors"] = result["errors"]
    return figures


def worst_ratio(figures: Figures, baseline: Figures) -> float:
    """The largest ratio to the baseline, of a percentile or of an engine's processor time. Infinite with errors."""
    if any(value for name, value in figures.items() if name.endswith("_errors")):
        return float("inf")
    ratios = [value / baseline[name] for name, value in figures.items() if name.endswith("_p99_milliseconds")]
    for engine in {name.partition("_")[0] for name in figures}:
        sums = [
            sum(value for name, value in row.items() if name.startswith(engine) and name.endswith("_microseconds"))
            for row in (figures, baseline)
        ]
        ratios.append(sums[0] / sums[1])
    return max(ratios)


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation",
        description=__doc__,
        epilog="Other options are those of benchmarks.control_plane.",
    )
    parser.add_argument("--write", type=Path, required=True, help="file of results; an existing one is continued")
    return parser.parse_known_args()


def main() -> None:
    """The command line. The last line is a JSON object: what can go, what stays, and the figures."""
    options, others = _arguments()
    runs = Runs(options.write.resolve(), others)
    baseline = runs.figures([])
    alone = {mechanism.name: worst_ratio(runs.figures([mechanism]), baseline) for mechanism in MECHANISMS}
    out: list[Mechanism] = []
    for mechanism in sorted(MECHANISMS, key=lambda mechanism: alone[mechanism.name]):
        if worst_ratio(runs.figures([*out, mechanism]), baseline) <= _TOLERANCE:
            out.append(mechanism)
    names = [mechanism.name for mechanism in out]
    kept = [mechanism.name for mechanism in MECHANISMS if mechanism not in out]
    print(json.dumps({"baseline": baseline, "ratio_alone": alone, "can_go": names, "stays": kept}), flush=True)


if __name__ == "__main__":
    main()
