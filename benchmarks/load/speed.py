"""Speed of a core during a benchmark, which tells a slow hour of a shared machine from slow code."""

import os
import time

from benchmarks.memory import Sampling

_EVERY_SECONDS = 1.0
_TURNS = 20_000


def reference_seconds() -> float:
    """Processor time of this thread for a fixed piece of plain Python, without the time of other processes."""
    start = time.thread_time()
    total = 0
    for turn in range(_TURNS):
        total += turn * turn
    return time.thread_time() - start


class Speed(Sampling):
    """A context. `samples` are `reference_seconds` on the core, one for each second inside it."""

    def __init__(self, core: int) -> None:
        super().__init__(_EVERY_SECONDS)
        self._core = core
        self.samples: list[float] = []

    def sample(self) -> None:
        os.sched_setaffinity(0, {self._core})  # affects only the sampling thread
        self.samples.append(reference_seconds())
