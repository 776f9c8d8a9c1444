"""When a worker counts as alive. Pure; the time is passed in."""

from datetime import datetime, timedelta
from typing import Literal

from coordinator.models import Worker


def heard_since(now: datetime, timeout_seconds: float) -> datetime:
    """A worker heard before this is silent."""
    return now - timedelta(seconds=timeout_seconds)


def state_of(worker: Worker, now: datetime, timeout_seconds: float) -> Literal["alive", "silent", "revoked"]:
    """Revoked for ever; else alive if it was heard within `timeout_seconds`."""
    if worker.revoked_at is not None:
        return "revoked"
    heard = worker.last_seen_at is not None and worker.last_seen_at >= heard_since(now, timeout_seconds)
    return "alive" if heard else "silent"
