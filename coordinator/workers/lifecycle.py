"""Life cycle of a worker: alive or silent, and the boots that a later one replaced. Pure; the time is passed in."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from coordinator.models import Worker

REMEMBERED_BOOTS: Final = 32
Boot = Mapping[str, Any]
"""A replaced boot of a worker: its `boot_id`, and `doubles`, the boot id beside which it appeared again."""


def silent_before(now: datetime, timeout_seconds: float) -> datetime:
    """A worker whose last heartbeat is before this time is silent."""
    return now - timedelta(seconds=timeout_seconds)


def state_of(worker: Worker, now: datetime, timeout_seconds: float) -> Literal["alive", "silent", "revoked"]:
    """The worker's state. Alive: its last heartbeat is within `timeout_seconds`."""
    if worker.revoked_at is not None:
        return "revoked"
    is_alive = worker.last_seen_at is not None and worker.last_seen_at >= silent_before(now, timeout_seconds)
    return "alive" if is_alive else "silent"


def with_replaced(boots: Sequence[Boot] | None, boot_id: str) -> list[Boot]:
    """The boots with this one appended as replaced, limited to the newest `REMEMBERED_BOOTS`."""
    return [*(boots or ()), {"boot_id": boot_id, "doubles": None}][-REMEMBERED_BOOTS:]


def with_double(boots: Sequence[Boot], boot_id: str, present: str) -> list[Boot]:
    """The boots with `present` recorded as the double of the replaced boot; equal if it was recorded before."""
    return [{**boot, "doubles": present} if boot["boot_id"] == boot_id else boot for boot in boots]


def is_replaced(worker: Worker, boot_id: str) -> bool:
    """True if a later boot replaced this one. An agent never returns to an earlier boot id."""
    return any(boot["boot_id"] == boot_id for boot in worker.replaced_boots or ())
