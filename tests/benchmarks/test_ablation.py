"""Ablation: every mechanism's change still fits the sources, and a change that does not is named."""

import ast
import shutil
from pathlib import Path

import pytest

from benchmarks.ablation.__main__ import figures_of, worst_ratio
from benchmarks.ablation.mechanisms import MECHANISMS, Change, Mechanism, switch_off

ROOT = Path(__file__).parents[2]
FILES = {change.file for mechanism in MECHANISMS for change in mechanism.changes}
RESULT = {"p99_milliseconds": 50.04, "processor_shares": {"web": 0.2, "background": 0.05, "beat": 0.0}, "errors": 0}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for file in FILES:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda mechanism: mechanism.name)
def test_each_can_be_switched_off(sources: Path, mechanism: Mechanism) -> None:
    switch_off(mechanism, sources)
    for file in {change.file for change in mechanism.changes}:
        text = (sources / file).read_text(encoding="utf-8")
        assert text != (ROOT / file).read_text(encoding="utf-8")
        ast.parse(text)


def test_all_can_be_switched_off_together(sources: Path) -> None:
    for mechanism in MECHANISMS:
        switch_off(mechanism, sources)


def test_a_change_that_fits_no_more_is_named(sources: Path) -> None:
    gone = Mechanism("gone", "nothing", (Change("coordinator/app.py", "a text that is not there", ""),))
    with pytest.raises(SystemExit, match=r"gone: coordinator/app\.py has the text to be replaced 0 times"):
        switch_off(gone, sources)


def test_figures_are_of_each_engine_and_role() -> None:
    figures = figures_of({"details": {"agents": 1000, "sqlite": RESULT}})
    assert figures == {
        "sqlite_p99_milliseconds": 50.0,
        "sqlite_web_microseconds": 200.0,
        "sqlite_background_microseconds": 50.0,
        "sqlite_errors": 0,
    }


@pytest.mark.parametrize(
    ("changes", "ratio"),
    [
        ({}, 1.0),
        ({"sqlite_p99_milliseconds": 60.0}, 1.2),
        ({"sqlite_web_microseconds": 450.0}, 2.0),
        ({"sqlite_errors": 1}, float("inf")),
    ],
)
def test_the_worst_ratio_counts(changes: dict[str, float], ratio: float) -> None:
    baseline = figures_of({"details": {"agents": 1000, "sqlite": RESULT}})
    assert worst_ratio(baseline | changes, baseline) == pytest.approx(ratio)
