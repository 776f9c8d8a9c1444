"""The memory of processes, held against what they had once they were warm."""

from collections.abc import Callable, Mapping

import psutil

from tests.fuzz.record import Finding
from tests.fuzz.turns import Turn
from tests.support.memory import anonymous_bytes

MEBIBYTE = 1024**2
BOUND_MIB = 64.0
"""Caches, connections and threads of a web process that was asked little before are 25; five minutes of a warm one,
and of each other process, are 5."""
WARM_SHARE = 0.25


class Growth:
    """`processes`: name -> its pid now."""

    def __init__(self, processes: Mapping[str, Callable[[], int]]) -> None:
        self._processes = processes
        self._first: dict[str, int] = {}

    def look(self, turn: Turn) -> None:
        """Notes their memory once a share of the turn is over: caches are filled by then."""
        if not self._first and turn.minutes * 60 > turn.seconds * WARM_SHARE:
            self._first = {name: anonymous_bytes(pid()) for name, pid in self._processes.items()}

    def judge(self, turn: Turn) -> None:
        """Records by how much each has grown since, and finds those that grew too much or are no more."""
        for name, first in self._first.items():
            try:
                mib = (anonymous_bytes(self._processes[name]()) - first) / MEBIBYTE
            except (OSError, psutil.Error) as error:
                turn.add(Finding("ended", name, "no such process", None, str(error)))
                continue
            turn.record.growth_mib[name] = round(mib, 1)
            if mib > BOUND_MIB:
                came = f"{mib:.1f} MiB in {turn.minutes:.1f} minutes, at most {BOUND_MIB:g}"
                turn.add(Finding("growth", name, "memory", None, came))
