"""Wake-up of calls that wait for a job, by one watcher per web process.

PostgreSQL notifies the watcher of the workers that have an offer. The watcher also polls for new offers: every second
while it receives notifications, else every few milliseconds. It knows the database by the functions that it is given
alone.

The numbers of offers need not become visible in their order, since a transaction that drew its number earlier may
commit later. Offers of the last `SETTLE_SECONDS` are therefore read again, and known ones are skipped.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import structlog
from anyio import CapacityLimiter, to_thread

from coordinator.db.listener import Listener

SETTLE_SECONDS = 5.0

Offer = tuple[int, str, str]
Result = TypeVar("Result")
_log = structlog.get_logger(__name__)


class Watcher:
    """Watcher for one event loop.

    `offers_after(number)` returns (number, job id, worker id) of newer offers, `newest()` the largest number, and
    `listen()` the connection for `Listener`, on which each notification is a list of worker ids with spaces between.
    """

    def __init__(
        self,
        newest: Callable[[], int],
        offers_after: Callable[[int], Sequence[Offer]],
        listen: Callable[[], Any | None],
        poll_seconds: float,
    ) -> None:
        self._newest, self._offers_after = newest, offers_after
        self._notices = Listener(listen, self._on_notify, poll_seconds)
        self._notified_ids: set[str] = set()
        self._missed_ids: set[str] = set()
        self._was_listening = False
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._task: asyncio.Task[None] | None = None
        self._is_ready = asyncio.Event()
        self._thread = CapacityLimiter(1)

    @asynccontextmanager
    async def waiting(self, worker_id: str, event: asyncio.Event | None = None) -> AsyncIterator[asyncio.Event]:
        """An event that every later offer for the worker sets: `event`, or a new one."""
        event = event or asyncio.Event()
        self._waiters.setdefault(worker_id, set()).add(event)
        if self._task is None or self._task.done():
            self._is_ready = asyncio.Event()
            self._task = asyncio.create_task(self._watch(), name="job-watcher")
        try:
            await self._is_ready.wait()
            yield event
        finally:
            self._waiters[worker_id].discard(event)
            if not self._waiters[worker_id]:
                del self._waiters[worker_id]
            if not self._waiters:
                self._notices.wake()

    async def _watch(self) -> None:
        cursor: OfferCursor | None = None
        try:
            while self._waiters:
                try:
                    cursor = await self._poll(cursor)
                except Exception as error:  # the watcher must survive any error: all waiting calls depend on it
                    _log.warning("offers_not_read", reason=repr(error))
                self._is_ready.set()
                await self._notices.wait()
        finally:
            self._notices.close()
            self._missed_ids, self._notified_ids, self._was_listening = set(), set(), False

    async def _call(self, function: Callable[[], Result]) -> Result:
        # A thread outside of the pool, which may be full of calls that lease the latest offers.
        return await to_thread.run_sync(function, limiter=self._thread)

    async def _poll(self, cursor: "OfferCursor | None") -> "OfferCursor":
        if cursor is None:
            cursor = OfferCursor(await self._call(self._newest))
            self._wake(set(self._waiters))
            return cursor
        listening = self._notices.listening
        offers = await self._call(partial(self._offers_after, cursor.position))
        worker_ids = {worker_id for _, _, worker_id in cursor.new(offers, asyncio.get_running_loop().time())}
        self._wake(worker_ids)
        self._compare(worker_ids, listening=listening)
        return cursor

    def _compare(self, worker_ids: set[str], *, listening: bool) -> None:
        """An offer counts as missed if no notification came by the poll after the one that read it."""
        if listening and self._missed_ids - self._notified_ids:
            self._notices.fall_back_to_polling()
        self._missed_ids = worker_ids - self._notified_ids if listening and self._was_listening else set()
        self._was_listening, self._notified_ids = listening, set()

    def _on_notify(self, worker_ids: str) -> None:
        ids = set(worker_ids.split())
        self._notified_ids |= ids
        self._wake(ids)

    def _wake(self, worker_ids: set[str]) -> None:
        for worker_id in worker_ids & self._waiters.keys():
            for event in self._waiters[worker_id]:
                event.set()


class OfferCursor:
    """Position in the stream of offers. No offer with a number below `position` can still become visible."""

    def __init__(self, newest: int) -> None:
        self.position = newest
        self._newest = newest
        self._recent_keys: set[tuple[int, str]] = set()
        self._readings: deque[tuple[float, int]] = deque()

    def new(self, offers: Sequence[Offer], now: float) -> list[Offer]:
        """The offers that are new since the last call. `now`: seconds of any clock."""
        new_offers = [offer for offer in offers if offer[:2] not in self._recent_keys]
        self._recent_keys.update(offer[:2] for offer in new_offers)
        self._newest = max([self._newest, *(number for number, _, _ in new_offers)])
        if not self._readings or self._readings[-1][1] != self._newest:
            self._readings.append((now, self._newest))
        while self._readings and self._readings[0][0] < now - SETTLE_SECONDS:
            self.position = max(self.position, self._readings.popleft()[1])
            self._recent_keys = {key for key in self._recent_keys if key[0] > self.position}
        return new_offers
