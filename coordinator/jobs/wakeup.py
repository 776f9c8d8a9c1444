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

from coordinator.db.listener import Listener

SETTLE_SECONDS = 5.0

Offer = tuple[int, str, str]
Answer = TypeVar("Answer")
_log = structlog.get_logger(__name__)


class Watcher:
    """For one event loop. `offers_after(number)` gives (number, job id, worker id); `newest()` the largest number.

    `told()` gives what `Listener` listens on, where worker ids are told, with spaces between them.
    """

    def __init__(
        self,
        newest: Callable[[], int],
        offers_after: Callable[[int], Sequence[Offer]],
        told: Callable[[], Any | None],
        poll_seconds: float,
    ) -> None:
        self._newest, self._offers_after = newest, offers_after
        self._notices = Listener(told, self._hear, poll_seconds)
        self._told: set[str] = set()
        self._untold: set[str] = set()
        self._listened = False
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._task: asyncio.Task[None] | None = None
        self._began = asyncio.Event()
        self._thread = CapacityLimiter(1)

    @asynccontextmanager
    async def waiting(self, worker_id: str, woken: asyncio.Event | None = None) -> AsyncIterator[asyncio.Event]:
        """An event, `woken` if given, that is set by every offer for the worker made after this was entered."""
        woken = woken or asyncio.Event()
        self._waiters.setdefault(worker_id, set()).add(woken)
        if self._task is None or self._task.done():
            self._began = asyncio.Event()
            self._task = asyncio.create_task(self._watch(), name="job-watcher")
        try:
            await self._began.wait()
            yield woken
        finally:
            self._waiters[worker_id].discard(woken)
            if not self._waiters[worker_id]:
                del self._waiters[worker_id]
            if not self._waiters:
                self._notices.wake()

    async def _watch(self) -> None:
        known: Known | None = None
        try:
            while self._waiters:
                try:
                    known = await self._look(known)
                except Exception as error:  # whatever it is, those who wait must not wait in vain from now on
                    _log.warning("offers_not_read", reason=repr(error))
                self._began.set()
                await self._notices.wait()
        finally:
            self._notices.close()
            self._untold, self._told, self._listened = set(), set(), False

    async def _asked(self, question: Callable[[], Answer]) -> Answer:
        # A thread beside the pool: that may be full of those who lease what was offered a moment ago.
        return await to_thread.run_sync(question, limiter=self._thread)

    async def _look(self, known: "Known | None") -> "Known":
        if known is None:
            known = Known(await self._asked(self._newest))
            self._wake(set(self._waiters))
            return known
        listening = self._notices.listening
        offers = await self._asked(partial(self._offers_after, known.settled))
        found = {worker_id for _, _, worker_id in known.new(offers, asyncio.get_running_loop().time())}
        self._wake(found)
        self._compare(found, listening=listening)
        return known

    def _compare(self, found: set[str], *, listening: bool) -> None:
        """What was offered while it listened is missed if it is not told by the look after the one that found it."""
        if listening and self._untold - self._told:
            self._notices.fall_back_to_polling()
        self._untold = found - self._told if listening and self._listened else set()
        self._listened, self._told = listening, set()

    def _hear(self, worker_ids: str) -> None:
        told = set(worker_ids.split())
        self._told |= told
        self._wake(told)

    def _wake(self, worker_ids: set[str]) -> None:
        for worker_id in worker_ids & self._waiters.keys():
            for woken in self._waiters[worker_id]:
                woken.set()


class Known:
    """What was read. `settled`: no offer with a smaller number can still come to light."""

    def __init__(self, newest: int) -> None:
        self.settled = newest
        self._newest = newest
        self._seen: set[tuple[int, str]] = set()
        self._readings: deque[tuple[float, int]] = deque()

    def new(self, offers: Sequence[Offer], now: float) -> list[Offer]:
        """Those that were not there before; `now` in seconds of any clock."""
        found = [offer for offer in offers if offer[:2] not in self._seen]
        self._seen.update(offer[:2] for offer in found)
        self._newest = max([self._newest, *(number for number, _, _ in found)])
        if not self._readings or self._readings[-1][1] != self._newest:
            self._readings.append((now, self._newest))
        while self._readings and self._readings[0][0] < now - SETTLE_SECONDS:
            self.settled = max(self.settled, self._readings.popleft()[1])
            self._seen = {seen for seen in self._seen if seen[0] > self.settled}
        return found
