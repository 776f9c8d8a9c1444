"""Delivery threads of a background process, and the order in which they serve organizations.

A slow receiver blocks one of these threads, and never a thread that advances federations. Organizations take turns,
and each has at most one delivery in progress, so that its receivers block at most one thread. The queues in memory
may be lost: the database records what is due, and the reconciler reads it.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

TURN_SECONDS = 1.0
"""Length of a turn. A delivery in progress may exceed it."""
MOST_IN_LINE = 100
"""Longest queue of one organization. The reconciler finds further webhooks again."""
_log = structlog.get_logger(__name__)


class Turns:
    """Round-robin order of organizations and their webhooks. Not thread-safe: the caller holds a lock."""

    def __init__(self) -> None:
        self.is_closed = False
        # Organization id -> its webhooks in order. `_lines` is sorted by turn.
        self._lines: dict[str, dict[str, None]] = {}
        self._busy_lines: dict[str, dict[str, None]] = {}

    def add(self, organization_id: str, webhook_id: str) -> None:
        """Appends the webhook to its organization's queue, unless it is queued already or the queue is full."""
        line = self._busy_lines.get(organization_id)
        if line is None:
            line = self._lines.setdefault(organization_id, {})
        if len(line) < MOST_IN_LINE:
            line.setdefault(webhook_id)

    def take(self) -> tuple[str, str] | None:
        """Begins the next turn: (organization id, webhook id). None if no idle organization has a webhook queued."""
        if self.is_closed or not self._lines:
            return None
        organization_id = next(iter(self._lines))
        line = self._busy_lines[organization_id] = self._lines.pop(organization_id)
        webhook_id = next(iter(line))
        del line[webhook_id]
        return organization_id, webhook_id

    def end(self, organization_id: str, webhook_id: str, more: bool) -> None:
        """Ends a turn. `more`: the webhook has further deliveries and is queued again."""
        if more:
            self.add(organization_id, webhook_id)
        line = self._busy_lines.pop(organization_id)
        if line:
            self._lines[organization_id] = line


class Deliverer:
    """Delivery threads of a process. `send_next` sends one delivery of a webhook; it returns False if none is due."""

    def __init__(self, send_next: Callable[[str], bool], turn_seconds: float = TURN_SECONDS) -> None:
        self._send_next, self._turn_seconds = send_next, turn_seconds
        self._condition = threading.Condition()
        self._turns: Turns | None = None

    @contextmanager
    def running(self, threads: int, closing_seconds: float) -> Iterator[None]:
        """Sends until the block ends, then waits up to `closing_seconds` for the deliveries in progress."""
        turns = Turns()
        # Daemons: a delivery that takes longer does not block the exit of the process.
        workers = [
            threading.Thread(target=self._work, args=(turns,), name=f"deliver-{number}", daemon=True)
            for number in range(threads)
        ]
        for worker in workers:
            worker.start()
        self._turns = turns
        try:
            yield
        finally:
            with self._condition:
                self._turns, turns.is_closed = None, True
                self._condition.notify_all()
            give_up_at = time.monotonic() + closing_seconds
            for worker in workers:
                worker.join(max(0.0, give_up_at - time.monotonic()))

    def hand(self, organization_id: str, webhook_id: str) -> bool:
        """Queues the webhook for delivery without waiting for it. False if no delivery threads run here."""
        with self._condition:
            if self._turns is None:
                return False
            self._turns.add(organization_id, webhook_id)
            self._condition.notify()
            return True

    def _work(self, turns: Turns) -> None:
        while (turn := self._next(turns)) is not None:
            organization_id, webhook_id = turn
            more = self._send(turns, webhook_id)
            with self._condition:
                turns.end(organization_id, webhook_id, more)

    def _next(self, turns: Turns) -> tuple[str, str] | None:
        with self._condition:
            while (turn := turns.take()) is None and not turns.is_closed:
                self._condition.wait()
            return turn

    def _send(self, turns: Turns, webhook_id: str) -> bool:
        """True if the turn ended while deliveries may still be due."""
        end_at = time.monotonic() + self._turn_seconds
        try:
            while self._send_next(webhook_id):
                if turns.is_closed or time.monotonic() >= end_at:
                    return True
        except Exception:  # most likely of the database; the thread continues, and the reconciler finds what is due
            _log.exception("delivery_broken_off", webhook_id=webhook_id)
        return False
