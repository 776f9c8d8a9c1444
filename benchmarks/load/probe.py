"""A latency probe: a client beside a load that measures the response time of the web process."""

import threading
import time
from collections.abc import Sequence

import httpx

_PAUSE_SECONDS = 0.003


class Probe(threading.Thread):
    """Requests `/healthz` until `end`. `seconds` are the response times."""

    def __init__(self, url: str) -> None:
        super().__init__(name="probe", daemon=True)
        self._url, self._stop_event = url, threading.Event()
        self.seconds: list[float] = []

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as http:
            while not self._stop_event.wait(_PAUSE_SECONDS):
                start = time.perf_counter()
                http.get("/healthz").raise_for_status()
                self.seconds.append(time.perf_counter() - start)

    def end(self) -> list[float]:
        """Stop, and return all response times, slowest last."""
        self._stop_event.set()
        self.join()
        return sorted(self.seconds)


def milliseconds_at(seconds: Sequence[float], share: float) -> float:
    """The response time in milliseconds below which this share of the sorted `seconds` lies."""
    return 1000 * seconds[min(int(share * len(seconds)), len(seconds) - 1)]
