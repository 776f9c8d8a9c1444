"""The memory of processes, held against what they had once they were warm."""

from collections.abc import Callable, Mapping

from benchmarks.memory import anonymous_bytes
from tests.fuzz.record import Finding
from tests.fuzz.turns import Turn

MEBIBYTE = 1024**2
BOUND_MIB = 64.0
"""Arenas of the allocator, caches, connections: 25 were seen in five minutes, and one leaked megabyte a second is 64
in one."""
GARBAGE_MIB = 8 / 1024
MOST_GARBAGE_MIB = 320.0
"""Python's collector looks through a web process seldom (`coordinator.__main__`): 6 KiB of each request wait for it,
until some 200 MiB do."""
WARM_SHARE = 0.25


class Growth:
    """`processes`: name -> its pid now."""

    def __init__(self, processes: Mapping[str, Callable[[], int]]) -> None:
        self._processes = processes
        self._first: dict[str, int] = {}
        self._first_requests = 0

    def look(self, turn: Turn) -> None:
        """Notes their memory once a share of the turn is over: caches are filled by then."""
        if not self._first and turn.minutes * 60 > turn.seconds * WARM_SHARE:
            self._first = {name: anonymous_bytes(pid()) for name, pid in self._processes.items()}
            self._first_requests = turn.record.count

    def judge(self, turn: Turn) -> None:
        """Records by how much each has grown since, and finds those that grew too much."""
        requests = turn.record.count - self._first_requests
        for name, first in self._first.items():
            mib = (anonymous_bytes(self._processes[name]()) - first) / MEBIBYTE
            turn.record.growth_mib[name] = round(mib, 1)
            bound = bound_mib(requests)
            if mib > bound:
                came = f"{mib:.1f} MiB with {requests} requests, at most {bound:.0f}"
                turn.add(Finding("growth", name, "memory", None, came))


def bound_mib(requests: int) -> float:
    """By how much a process may grow while so many requests are made."""
    return BOUND_MIB + min(GARBAGE_MIB * requests, MOST_GARBAGE_MIB)
