"""What a round costs beside training: from the end of one round to the end of the next, less the longest training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any


@dataclass(frozen=True)
class RoundTimes:
    """One round: its number, when it ended (seconds on the wall), and the longest time a client trained in it.

    `phases`: what the round's time was spent on, in seconds, as far as it is known.
    """

    number: int
    ended_at: float
    training_seconds: float
    phases: dict[str, float] = field(default_factory=dict)


def overheads(rounds: Sequence[RoundTimes]) -> list[float]:
    """Seconds of overhead of every round but the first, which has no end of a round before it."""
    by_number = sorted(rounds, key=lambda one: one.number)
    return [later.ended_at - earlier.ended_at - later.training_seconds for earlier, later in pairwise(by_number)]


def summary(rounds: Sequence[RoundTimes]) -> dict[str, Any]:
    """Median and extremes of the overhead, and every round's numbers. Raises ValueError for fewer than two."""
    if len(rounds) < 2:
        raise ValueError(f"{len(rounds)} round(s): the overhead lies between the ends of two")
    seconds = overheads(rounds)
    by_number = sorted(rounds, key=lambda one: one.number)
    return {
        "median_seconds": round(median(seconds), 4),
        "min_seconds": round(min(seconds), 4),
        "max_seconds": round(max(seconds), 4),
        "median_training_seconds": round(median(one.training_seconds for one in by_number[1:]), 4),
        "median_phases": _median_phases(by_number[1:]),
        "rounds": [
            {
                "number": one.number,
                "overhead_seconds": round(overhead, 4),
                "training_seconds": round(one.training_seconds, 4),
                "phases": {name: round(value, 4) for name, value in one.phases.items()},
            }
            for one, overhead in zip(by_number[1:], seconds, strict=True)
        ],
    }


def _median_phases(rounds: Sequence[RoundTimes]) -> dict[str, float]:
    names = dict.fromkeys(name for one in rounds for name in one.phases)
    return {name: round(median(one.phases.get(name, 0.0) for one in rounds), 4) for name in names}
