"""Anonymous memory of a process, and its peak in this process (Linux)."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

SAMPLE_SECONDS = 0.002


@dataclass
class Peak:
    """`peak_bytes`: the most anonymous memory inside the block above that at its start."""

    peak_bytes: int = 0


def anonymous_bytes(pid: int | None = None) -> int:
    """Anonymous resident memory of this process or another. Mapped files and shared memory are not in it.

    Raises psutil.Error if the process has ended.
    """
    memory = psutil.Process(pid).memory_info()
    return int(memory.rss - memory.shared)


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """A thread samples the memory of this process until the block ends."""
    base, peak, stop = anonymous_bytes(), Peak(), threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            peak.peak_bytes = max(peak.peak_bytes, anonymous_bytes() - base)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
