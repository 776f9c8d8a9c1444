"""Overhead of rounds: the time from the end of one round to the end of the next, less the longest training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any


@dataclass(frozen=True)
class RoundTimes:
    """Number of a round, its end (seconds since the epoch), and the longest training time of a client.

    `phases`: seconds of the round's phases, as far as they are known.
    """

    number: int
    ended_at: float
    training_seconds: float
    phases: dict[str, float] = field(default_factory=dict)


def overheads(rounds: Sequence[RoundTimes]) -> list[float]:
    """Seconds of overhead of every round but the first, before which no round ended."""
    by_number = sorted(rounds, key=lambda row: row.number)
    return [later.ended_at - earlier.ended_at - later.training_seconds for earlier, later in pairwise(by_number)]


def summary(rounds: Sequence[RoundTimes]) -> dict[str, Any]:
    """Median and extremes of the overhead, and the numbers of every round. Raises ValueError for fewer than two."""
    if len(rounds) < 2:
        raise ValueError(f"{len(rounds)} round(s): the overhead needs the ends of two")
    seconds = overheads(rounds)
    by_number = sorted(rounds, key=lambda row: row.number)
    return {
        "median_seconds": round(median(seconds), 4),
        "min_seconds": round(min(seconds), 4),
        "max_seconds": round(max(seconds), 4),
        "median_training_seconds": round(median(row.training_seconds for row in by_number[1:]), 4),
        "median_phases": _median_phases(by_number[1:]),
        "rounds": [
            {
                "number": row.number,
                "overhead_seconds": round(overhead, 4),
                "training_seconds": round(row.training_seconds, 4),
                "phases": {name: round(value, 4) for name, value in row.phases.items()},
            }
            for row, overhead in zip(by_number[1:], seconds, strict=True)
        ],
    }


def _median_phases(rounds: Sequence[RoundTimes]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rounds for name in row.phases)
    return {name: round(median(row.phases.get(name, 0.0) for row in rounds), 4) for name in names}
