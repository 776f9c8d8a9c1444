"""Overhead of a round, and the pins that it shares with Flower."""

import pytest

from benchmarks.flower_peer.environment import SHARED, shared_pins
from benchmarks.round_times import RoundTimes, overheads, summary


def test_the_overhead_is_what_lies_between_two_ends_less_the_training() -> None:
    rounds = [RoundTimes(3, 17.5, 3.0), RoundTimes(1, 10.0, 2.0), RoundTimes(2, 14.0, 3.75)]
    assert overheads(rounds) == [0.25, 0.5]  # 14 - 10 - 3.75; 17.5 - 14 - 3


def test_the_summary_is_the_median_over_all_rounds_but_the_first() -> None:
    ends = [0.0, 1.5, 4.0, 5.0]  # overheads 0.5, 1.5, 0
    report = summary([RoundTimes(number, end, 1.0, {"planning": end}) for number, end in enumerate(ends, start=1)])
    assert (report["median_seconds"], report["min_seconds"], report["max_seconds"]) == (0.5, 0.0, 1.5)
    assert report["median_phases"] == {"planning": 4.0}
    assert [one["number"] for one in report["rounds"]] == [2, 3, 4]


def test_one_round_has_no_overhead() -> None:
    with pytest.raises(ValueError, match=r"^1 round"):
        summary([RoundTimes(1, 10.0, 2.0)])


def test_what_trains_is_pinned_alike_for_flower_and_for_this_project() -> None:
    assert sorted(pin.partition("==")[0].lower() for pin in shared_pins()) == sorted(SHARED)
