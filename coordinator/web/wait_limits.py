"""Limits on open waits of a key or worker, and of all keys of an organization, at this web process."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from coordinator.auth.principals import Principal
from coordinator.errors import TooManyRequests
from coordinator.settings import get_settings

ORGANIZATION_KEYS = 5
"""The keys of an organization may together hold as many waits as this many keys: an owner may create any number."""
_RETRY_SECONDS = 5.0


class WaitCounts:
    """Open waits by the id of a key, a worker or an organization. For one event loop."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    @contextmanager
    def count_open(self, principal: Principal) -> Iterator[None]:
        """Counts an open wait while the block runs. Raises TooManyRequests."""
        bounds = _bounds(principal)
        for name, bound in bounds.items():
            if self._open[name] >= bound:
                raise _too_many(name == principal.id, bound)
        self._open.update(bounds.keys())
        try:
            yield
        finally:
            for name in bounds:
                self._open[name] -= 1
                if not self._open[name]:
                    del self._open[name]

    def __len__(self) -> int:
        return len(self._open)


def _bounds(principal: Principal) -> dict[str, int]:
    """Id -> maximum number of its open waits. Waits of workers do not count toward their organization."""
    settings = get_settings()
    if principal.kind == "worker":
        return {principal.id: settings.max_worker_waits}
    bounds = {principal.id: settings.max_waits}
    if principal.organization_id is not None:
        bounds[principal.organization_id] = ORGANIZATION_KEYS * settings.max_waits
    return bounds


def _too_many(own: bool, bound: int) -> TooManyRequests:
    whose = "These credentials hold" if own else "The keys of this organization hold"
    detail = f"{whose} {bound} open waits here, which is the maximum. Streams and calls with a wait both count."
    return TooManyRequests("too_many_waits", detail, retry_after_seconds=_RETRY_SECONDS)
