"""Rate limits of API keys and workers: a token bucket each, in the memory of this process alone."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

BURST_SECONDS = 2.0
_SWEEP_SIZE = 10_000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class Buckets:
    """Token buckets by name. A full bucket holds the tokens of `BURST_SECONDS`. `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._sweep_size = _SWEEP_SIZE
        self._lock = threading.Lock()

    def take(self, name: str, per_second: float) -> float:
        """Takes one token and returns 0.0; without a token, returns the seconds until the next one."""
        now, size = self._clock(), max(1.0, BURST_SECONDS * per_second)
        with self._lock:
            if len(self._buckets) >= self._sweep_size:
                self._sweep(now)
            bucket = self._buckets.setdefault(name, _Bucket(size, now))
            bucket.tokens = min(size, bucket.tokens + (now - bucket.filled_at) * per_second)
            bucket.filled_at = now
            if bucket.tokens >= 1:
                bucket.tokens -= 1
                return 0.0
            return (1 - bucket.tokens) / per_second

    def __len__(self) -> int:
        return len(self._buckets)

    def _sweep(self, now: float) -> None:
        """Drops buckets that were unused long enough to be full again, whatever their rate."""
        buckets = {name: bucket for name, bucket in self._buckets.items() if now - bucket.filled_at < BURST_SECONDS}
        self._buckets, self._sweep_size = buckets, max(_SWEEP_SIZE, 2 * len(buckets))
