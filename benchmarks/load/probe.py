"""A caller beside a load, who sees how long the web process keeps anybody waiting."""

import threading
import time
from collections.abc import Sequence

import httpx

_PAUSE_SECONDS = 0.003


class Probe(threading.Thread):
    """Asks `/healthz` until it is told to end; `seconds` are its answers'."""

    def __init__(self, url: str) -> None:
        super().__init__(name="probe", daemon=True)
        self._url, self._over = url, threading.Event()
        self.seconds: list[float] = []

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as http:
            while not self._over.wait(_PAUSE_SECONDS):
                start = time.perf_counter()
                http.get("/healthz").raise_for_status()
                self.seconds.append(time.perf_counter() - start)

    def end(self) -> list[float]:
        """All answers, slowest last."""
        self._over.set()
        self.join()
        return sorted(self.seconds)


def milliseconds_at(seconds: Sequence[float], share: float) -> float:
    """The answer below which this share of the sorted `seconds` lies, in milliseconds."""
    return 1000 * seconds[min(int(share * len(seconds)), len(seconds) - 1)]
