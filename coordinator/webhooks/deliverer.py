"""Delivery threads of a background process, and the order in which they serve organizations.

A slow receiver holds one of these threads, and never a thread that moves federations on. Organizations take turns,
and at most one webhook of an organization is sent to at a time: whatever its receivers do, it holds one thread.
Nothing is lost with the lines in memory: the tables say what is due, and the reconciler reads them.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

TURN_SECONDS = 1.0
"""After these another webhook has its turn; a message on its way is waited for."""
MOST_IN_LINE = 100
"""Webhooks of one organization that wait; the reconciler finds any others again."""
_log = structlog.get_logger(__name__)


class Turns:
    """The order in which webhooks are sent to. Pure; used under a lock."""

    def __init__(self) -> None:
        self.closed = False
        # Of each organization its webhooks in order; the organizations of `_lines` stand in the order of their turns.
        self._lines: dict[str, dict[str, None]] = {}
        self._busy_lines: dict[str, dict[str, None]] = {}

    def add(self, organization_id: str, webhook_id: str) -> None:
        """The webhook goes to the end of its organization's line, unless it stands there or the line is full."""
        line = self._busy_lines.get(organization_id)
        if line is None:
            line = self._lines.setdefault(organization_id, {})
        if len(line) < MOST_IN_LINE:
            line.setdefault(webhook_id)

    def take(self) -> tuple[str, str] | None:
        """Organization and webhook whose turn it is; None if nobody waits but those whose turn has not ended."""
        if self.closed or not self._lines:
            return None
        organization_id = next(iter(self._lines))
        line = self._busy_lines[organization_id] = self._lines.pop(organization_id)
        webhook_id = next(iter(line))
        del line[webhook_id]
        return organization_id, webhook_id

    def end(self, organization_id: str, webhook_id: str, more: bool) -> None:
        """The turn is over; `more`: the webhook has further messages, and waits for its next turn."""
        if more:
            self.add(organization_id, webhook_id)
        line = self._busy_lines.pop(organization_id)
        if line:
            self._lines[organization_id] = line


class Deliverer:
    """The threads of a process that send. `send_next` sends one message of a webhook; False if none is due."""

    def __init__(self, send_next: Callable[[str], bool], turn_seconds: float = TURN_SECONDS) -> None:
        self._send_next, self._turn_seconds = send_next, turn_seconds
        self._changed = threading.Condition()
        self._turns: Turns | None = None

    @contextmanager
    def running(self, threads: int, closing_seconds: float) -> Iterator[None]:
        """Sends until the block ends; then begins no other message, and waits so long for those on their way."""
        turns = Turns()
        # Daemons: a message that outlives its time does not keep the process.
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
            with self._changed:
                self._turns, turns.closed = None, True
                self._changed.notify_all()
            give_up_at = time.monotonic() + closing_seconds
            for worker in workers:
                worker.join(max(0.0, give_up_at - time.monotonic()))

    def hand(self, organization_id: str, webhook_id: str) -> bool:
        """Has what is due at the webhook sent soon, without waiting for it. False: no thread runs here."""
        with self._changed:
            if self._turns is None:
                return False
            self._turns.add(organization_id, webhook_id)
            self._changed.notify()
            return True

    def _work(self, turns: Turns) -> None:
        while (turn := self._next(turns)) is not None:
            organization_id, webhook_id = turn
            more = self._send(turns, webhook_id)
            with self._changed:
                turns.end(organization_id, webhook_id, more)

    def _next(self, turns: Turns) -> tuple[str, str] | None:
        with self._changed:
            while (turn := turns.take()) is None and not turns.closed:
                self._changed.wait()
            return turn

    def _send(self, turns: Turns, webhook_id: str) -> bool:
        """Whether the turn ended before the webhook's messages did."""
        end_at = time.monotonic() + self._turn_seconds
        try:
            while self._send_next(webhook_id):
                if turns.closed or time.monotonic() >= end_at:
                    return True
        except Exception:  # of the database, most likely: the thread lives on, and the reconciler finds what is due
            _log.exception("delivery_broken_off", webhook_id=webhook_id)
        return False
