"""Anonymous memory of a process, and the peak of this process above a base, sampled by a thread (Linux)."""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_SAMPLE_SECONDS = 0.002


def anonymous_bytes(pid: int | None = None) -> int:
    """Anonymous resident memory (`RssAnon`) of this process or another, without mapped files.

    Raises OSError if the process has ended.
    """
    status = Path("/proc", "self" if pid is None else str(pid), "status")
    for line in status.read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{status} has no RssAnon")


class Sampling:
    """A context that calls `sample` in a thread, first at its start and last at its end."""

    def __init__(self, every_seconds: float) -> None:
        self._every_seconds = every_seconds

    def sample(self) -> None:
        """Take one sample."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        last = False
        while not last:
            self.sample()
            last = self._stop.wait(self._every_seconds)
        self.sample()


class PeakMemory(Sampling):
    """A context. `peak_bytes` is the most anonymous memory inside it above that at its start."""

    def __init__(self) -> None:
        super().__init__(_SAMPLE_SECONDS)
        self.peak_bytes = 0

    def __enter__(self) -> Self:
        self._base = anonymous_bytes()
        return super().__enter__()

    def sample(self) -> None:
        self.peak_bytes = max(self.peak_bytes, anonymous_bytes() - self._base)
