"""Discovery of the benchmarks in the folder, each with a summary and a target."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.discovery import FOLDER, find_benchmarks

BENCHMARKS = find_benchmarks()


def _run_listing(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=False, timeout=60)


def test_the_list_names_every_module_that_can_be_run() -> None:
    runnable = {file.stem for file in FOLDER.glob("[!_]*.py") if "\ndef main(" in file.read_text(encoding="utf-8")}
    listing = _run_listing("--list")
    assert listing.returncode == 0, listing.stderr
    assert {line.partition(":")[0] for line in listing.stdout.splitlines()} == runnable
    assert "round_overhead" in runnable


@pytest.mark.parametrize("name", [benchmark.name for benchmark in BENCHMARKS])
class TestABenchmark:
    def test_says_what_it_measures_and_how_it_is_run(self, name: str) -> None:
        (benchmark,) = (one for one in BENCHMARKS if one.name == name)
        assert benchmark.summary
        assert f"python -m benchmarks.{name}" in (FOLDER / f"{name}.py").read_text(encoding="utf-8")

    def test_has_a_target(self, name: str) -> None:
        (benchmark,) = (one for one in BENCHMARKS if one.name == name)
        assert benchmark.targets
        assert all(number > 0 for number in benchmark.targets.values())


def test_a_module_without_main_is_no_benchmark(tmp_path: Path) -> None:
    (tmp_path / "shapes.py").write_text('"""Shapes."""\n', encoding="utf-8")
    (tmp_path / "speed.py").write_text('"""Speed.\n\nMore."""\n_TARGET_BYTES = 2 * 3**2\ndef main(): ...\n', "utf-8")
    (speed,) = find_benchmarks(tmp_path)
    assert (speed.name, speed.summary, speed.targets) == ("speed", "Speed.", {"bytes": 18.0})


def test_a_target_that_is_no_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "speed.py").write_text("_TARGET_SECONDS = slow()\ndef main(): ...\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"not 'slow\(\)'"):
        find_benchmarks(tmp_path)


def test_an_unknown_name_is_refused_and_the_known_ones_are_told() -> None:
    process = _run_listing("no_such_benchmark")
    assert process.returncode == 2
    assert "'no_such_benchmark'" in process.stderr
    assert "round_overhead" in process.stderr
