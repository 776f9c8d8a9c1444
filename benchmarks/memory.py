"""Anonymous memory of a process, and the peak of this one's above a base, sampled by a thread (Linux)."""

import threading
from pathlib import Path
from types import TracebackType

_SAMPLE_SECONDS = 0.002


def anonymous_bytes(pid: int | None = None) -> int:
    """Anonymous resident memory now (`RssAnon`), of this process or another; mapped files are not in it.

    Raises OSError if the process has ended.
    """
    status = Path("/proc", "self" if pid is None else str(pid), "status")
    for line in status.read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{status} has no RssAnon")


class PeakMemory:
    """A context: `peak_bytes` is the most anonymous memory inside it above that at its start."""

    def __enter__(self) -> "PeakMemory":
        self._base = anonymous_bytes()
        self.peak_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            last = self._done.wait(_SAMPLE_SECONDS)
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes() - self._base)
            if last:
                return
