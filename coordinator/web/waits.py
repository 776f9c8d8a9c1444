"""Open waits: event streams and long polls.

One reader in each event loop queries the database for all of them, every quarter of a second and only while there are
any. It reads the marks of the watched federations and jobs, and the callers' revoked or expired credentials. It wakes
the waits that are affected, and each of these then reads with its own rights.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakKeyDictionary

import structlog
from anyio import CapacityLimiter, to_thread
from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from coordinator.auth.principals import Principal, credentials_error
from coordinator.web.wait_limits import WaitCounts
from coordinator.web.wait_statements import Mark, Observation, Subject, observe

TICK_SECONDS = 0.25
WAKEUPS_AT_ONCE = 50
_PAUSE_SECONDS = 0.01
_log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class Wait:
    """One open wait. `mark`: the subject's mark as last read. Without a subject, other code sets `wakeup`."""

    principal: Principal
    subject: Subject | None = None
    mark: Mark = None
    wakeup: asyncio.Event = field(default_factory=asyncio.Event)
    refusal: str | None = None
    hung_up: bool = False

    async def change(self, seconds: float) -> bool:
        """Whether something changed within this time; False also if the caller hung up.

        Raises Unauthenticated, as the caller's next request would, once its credentials are revoked or expired.
        """
        if not self.hung_up:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.wakeup.wait()
        if self.refusal is not None:
            raise credentials_error(self.refusal)
        is_awake = self.wakeup.is_set() and not self.hung_up
        self.wakeup.clear()
        return is_awake


class Reader:
    """For one event loop. `look(subjects, principals)` runs in its own thread, once every `tick_seconds`."""

    def __init__(
        self, look: Callable[[Iterable[Subject], Iterable[Principal]], Observation], tick_seconds: float
    ) -> None:
        self._look, self._tick_seconds = look, tick_seconds
        self._waits: set[Wait] = set()
        self._task: asyncio.Task[None] | None = None
        self._thread = CapacityLimiter(1)

    @contextmanager
    def serving(self, wait: Wait) -> Iterator[None]:
        """Wakes the wait while the block runs."""
        self._waits.add(wait)
        if self._task is None or self._task.done():  # in an empty context: it belongs to no single request
            self._task = asyncio.get_running_loop().create_task(self._read(), name="wait-reader", context=Context())
        try:
            yield
        finally:
            self._waits.discard(wait)

    async def _read(self) -> None:
        while True:
            await asyncio.sleep(self._tick_seconds)
            if not self._waits:
                return
            try:
                await self._tick(tuple(self._waits))
            except Exception as error:  # whatever it is, the reader goes on for the open waits
                _log.warning("waits_not_read", reason=repr(error))

    async def _tick(self, waits: tuple[Wait, ...]) -> None:
        subjects = {wait.subject for wait in waits if wait.subject is not None}
        look = partial(self._look, subjects, {wait.principal for wait in waits})
        observation = await to_thread.run_sync(look, limiter=self._thread)
        for wait in waits:
            wait.refusal = observation.refusals.get(wait.principal.id)
        wakeups = [wait for wait in waits if wait.refusal or _is_behind(wait, observation)]
        wakeups.sort(key=lambda wait: wait.subject or ("", ""))  # waits for one subject read at the same moment
        for first in range(0, len(wakeups), WAKEUPS_AT_ONCE):
            for wait in wakeups[first : first + WAKEUPS_AT_ONCE]:
                wait.wakeup.set()
            await asyncio.sleep(_PAUSE_SECONDS)  # a thousand at once would block the event loop for all others


def _is_behind(wait: Wait, observation: Observation) -> bool:
    return wait.subject is not None and observation.marks.get(wait.subject) != wait.mark


@dataclass(frozen=True, slots=True)
class _Here:
    """The waits of one event loop."""

    counts: WaitCounts = field(default_factory=WaitCounts)
    reader: Reader = field(default_factory=partial(Reader, observe, TICK_SECONDS))


_here: WeakKeyDictionary[asyncio.AbstractEventLoop, _Here] = WeakKeyDictionary()


@asynccontextmanager
async def open_wait(
    principal: Principal, subject: Subject | None = None, mark: Mark = None, connection: Request | None = None
) -> AsyncIterator[Wait]:
    """A wait that is counted while the block runs, and that ends when the caller of `connection`, if given, hangs up.

    Raises TooManyRequests.
    """
    here = _here.setdefault(asyncio.get_running_loop(), _Here())
    wait = Wait(principal, subject, mark)
    with here.counts.count_open(principal), here.reader.serving(wait):
        listener = None if connection is None else asyncio.create_task(_notice_hang_up(wait, connection))
        try:
            yield wait
        finally:
            if listener is not None:
                listener.cancel()


async def _notice_hang_up(wait: Wait, connection: Request) -> None:
    while (await connection.receive())["type"] != "http.disconnect":
        pass  # the end of a body that was already read
    wait.hung_up = True
    wait.wakeup.set()


class WaitingStream(StreamingResponse):
    """A stream that counts as an open wait until its last byte; rejected before its first if there are too many."""

    def __init__(
        self,
        opening: AbstractAsyncContextManager[Wait],
        lines: Callable[[Wait], AsyncIterator[str]],
        headers: dict[str, str],
        media_type: str,
    ) -> None:
        super().__init__((), 200, headers, media_type)
        self._opening, self._lines = opening, lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._opening as wait:
            self.body_iterator = self._lines(wait)
            await super().__call__(scope, receive, send)
