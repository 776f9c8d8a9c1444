"""Life of a worker: whether it counts as alive, and the lives that another replaced. Pure; the time is passed in."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from coordinator.models import Worker

REMEMBERED_BOOTS: Final = 32
Boot = Mapping[str, Any]
"""A life of a worker that was replaced: its `boot_id`, and `doubles`, the life beside which it was heard again."""


def heard_since(now: datetime, timeout_seconds: float) -> datetime:
    """A worker heard before this is silent."""
    return now - timedelta(seconds=timeout_seconds)


def state_of(worker: Worker, now: datetime, timeout_seconds: float) -> Literal["alive", "silent", "revoked"]:
    """Revoked for ever; else alive if it was heard within `timeout_seconds`."""
    if worker.revoked_at is not None:
        return "revoked"
    heard = worker.last_seen_at is not None and worker.last_seen_at >= heard_since(now, timeout_seconds)
    return "alive" if heard else "silent"


def with_replaced(boots: Sequence[Boot] | None, boot_id: str) -> list[Boot]:
    """The record after this life was replaced too: the newest `REMEMBERED_BOOTS`."""
    return [*(boots or ()), {"boot_id": boot_id, "doubles": None}][-REMEMBERED_BOOTS:]


def with_double(boots: Sequence[Boot], boot_id: str, present: str) -> list[Boot]:
    """The record after the replaced life was heard beside the present one; equal if it was before."""
    return [{**boot, "doubles": present} if boot["boot_id"] == boot_id else boot for boot in boots]


def is_replaced(worker: Worker, boot_id: str) -> bool:
    """Whether another life of the worker came after this one: an agent never comes back to an earlier boot id."""
    return any(boot["boot_id"] == boot_id for boot in worker.replaced_boots or ())
