"""How many requests one key or worker may send: a token bucket for each, in the memory of this process alone."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

BURST_SECONDS = 2.0
_SWEPT_AT = 10_000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class Buckets:
    """Buckets by name; each holds what `BURST_SECONDS` bring. The time, in seconds, comes from `clock`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._swept_at = _SWEPT_AT
        self._lock = threading.Lock()

    def take(self, name: str, per_second: float) -> float:
        """Takes one token: 0.0, or if there is none, the seconds until there is one."""
        now, size = self._clock(), max(1.0, BURST_SECONDS * per_second)
        with self._lock:
            if len(self._buckets) >= self._swept_at:
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
        """Drops the buckets that were left alone long enough to be full again, whatever their rate."""
        kept = {name: bucket for name, bucket in self._buckets.items() if now - bucket.filled_at < BURST_SECONDS}
        self._buckets, self._swept_at = kept, max(_SWEPT_AT, 2 * len(kept))
