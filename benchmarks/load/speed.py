"""How fast a core computes while a benchmark runs: a slow hour of a shared machine is told from slow code by it."""

import os
import time

from benchmarks.memory import Sampling

_EVERY_SECONDS = 1.0
_TURNS = 20_000


def reference_seconds() -> float:
    """Processor time of this thread for a fixed piece of plain Python; what other processes take is not in it."""
    start = time.thread_time()
    total = 0
    for turn in range(_TURNS):
        total += turn * turn
    return time.thread_time() - start


class Speed(Sampling):
    """A context: `samples` are `reference_seconds` on that core, one for each second inside it."""

    def __init__(self, core: int) -> None:
        super().__init__(_EVERY_SECONDS)
        self._core = core
        self.samples: list[float] = []

    def sample(self) -> None:
        os.sched_setaffinity(0, {self._core})  # of the sampling thread alone
        self.samples.append(reference_seconds())
