"""Wakes those who wait for a job: one watcher per web process, however many wait.

It is told for which workers there is an offer, and wakes them. What it is not told it finds: it reads which offers
are new, every second while it is told of them, else every few milliseconds. Only what it is made with knows the
database.

Numbers of offers need not become visible in their order: a transaction that drew its number earlier may commit
later. So what was offered within the last `SETTLE_SECONDS` is read again and told from what is known.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import structlog
from anyio import CapacityLimiter, to_thread

from coordinator.db.listener import Notices

SETTLE_SECONDS = 5.0

Offer = tuple[int, str, str]
Result = TypeVar("Result")
_log = structlog.get_logger(__name__)


class Watcher:
    """For one event loop. `offers_after(number)` gives (number, job id, worker id); `newest()` the largest number.

    `told()` gives what `Notices` listens on, where worker ids are told, with spaces between them.
    """

    def __init__(
        self,
        newest: Callable[[], int],
        offers_after: Callable[[int], Sequence[Offer]],
        listen: Callable[[], Any | None],
        poll_seconds: float,
    ) -> None:
        self._newest, self._offers_after = newest, offers_after
        self._notices = Notices(listen, self._on_notify, poll_seconds)
        self._notified_ids: set[str] = set()
        self._missed_ids: set[str] = set()
        self._was_listening = False
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._task: asyncio.Task[None] | None = None
        self._is_ready = asyncio.Event()
        self._thread = CapacityLimiter(1)

    @asynccontextmanager
    async def waiting(self, worker_id: str, event: asyncio.Event | None = None) -> AsyncIterator[asyncio.Event]:
        """An event, `woken` if given, that is set by every offer for the worker made after this was entered."""
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
                except Exception as error:  # whatever it is, those who wait must not wait in vain from now on
                    _log.warning("offers_not_read", reason=repr(error))
                self._is_ready.set()
                await self._notices.wait()
        finally:
            self._notices.close()
            self._missed_ids, self._notified_ids, self._was_listening = set(), set(), False

    async def _call(self, question: Callable[[], Result]) -> Result:
        # A thread beside the pool: that may be full of those who lease what was offered a moment ago.
        return await to_thread.run_sync(question, limiter=self._thread)

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
        """What was offered while it listened is missed if it is not told by the look after the one that found it."""
        if listening and self._missed_ids - self._notified_ids:
            self._notices.distrust()
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
    """What was read. `settled`: no offer with a smaller number can still come to light."""

    def __init__(self, newest: int) -> None:
        self.position = newest
        self._newest = newest
        self._recent_keys: set[tuple[int, str]] = set()
        self._readings: deque[tuple[float, int]] = deque()

    def new(self, offers: Sequence[Offer], now: float) -> list[Offer]:
        """Those that were not there before; `now` in seconds of any clock."""
        new_offers = [offer for offer in offers if offer[:2] not in self._recent_keys]
        self._recent_keys.update(offer[:2] for offer in new_offers)
        self._newest = max([self._newest, *(number for number, _, _ in new_offers)])
        if not self._readings or self._readings[-1][1] != self._newest:
            self._readings.append((now, self._newest))
        while self._readings and self._readings[0][0] < now - SETTLE_SECONDS:
            self.position = max(self.position, self._readings.popleft()[1])
            self._recent_keys = {key for key in self._recent_keys if key[0] > self.position}
        return new_offers
