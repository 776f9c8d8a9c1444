"""Which of the calls that an event loop makes in threads go first, when there are many at one moment.

All threads of a process share one interpreter, and those who wait for an answer wait for its event loop. Six calls at
once leave the loop a seventh of the time; two leave it a third, and what somebody waits for is done sooner.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

_PATIENCE_SECONDS = 0.3


@dataclass(eq=False, slots=True)
class _Running:
    """Calls under way in one event loop."""

    urgent: int = 0
    others: int = 0
    ended: asyncio.Condition = field(default_factory=asyncio.Condition)

    def is_quiet(self) -> bool:
        return not self.urgent and not self.others


_running: WeakKeyDictionary[asyncio.AbstractEventLoop, _Running] = WeakKeyDictionary()


@asynccontextmanager
async def urgent() -> AsyncIterator[None]:
    """A context for a call that somebody waits for: it begins at once."""
    running = _here()
    running.urgent += 1
    try:
        yield
    finally:
        running.urgent -= 1
        await _told(running)


@asynccontextmanager
async def patient() -> AsyncIterator[None]:
    """A context for another call: it begins when none is under way, or after 0.3 s, whatever the others wait for."""
    running = _here()
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS), running.ended:
            await running.ended.wait_for(running.is_quiet)
            running.others += 1
    except TimeoutError:
        running.others += 1
    try:
        yield
    finally:
        running.others -= 1
        await _told(running)


def _here() -> _Running:
    return _running.setdefault(asyncio.get_running_loop(), _Running())


async def _told(running: _Running) -> None:
    if running.is_quiet():
        async with running.ended:
            running.ended.notify_all()
