"""Two priorities for the blocking calls that an event loop hands to threads.

All threads of a process share one interpreter, and the callers of a blocking call wait for its event loop. Six
concurrent calls leave the loop a seventh of the time. Two leave it a third, so urgent calls finish sooner.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

_LONGEST_DELAY_SECONDS = 0.3


@dataclass(eq=False, slots=True)
class _Running:
    """Counts of the calls in progress in one event loop."""

    high: int = 0
    low: int = 0
    idle: asyncio.Condition = field(default_factory=asyncio.Condition)

    def is_idle(self) -> bool:
        return not self.high and not self.low


_running: WeakKeyDictionary[asyncio.AbstractEventLoop, _Running] = WeakKeyDictionary()


@asynccontextmanager
async def high() -> AsyncIterator[None]:
    """Context of a call that somebody waits for: it starts at once."""
    running = _running_here()
    running.high += 1
    try:
        yield
    finally:
        running.high -= 1
        await _notify_if_idle(running)


@asynccontextmanager
async def low() -> AsyncIterator[None]:
    """Context of any other call: it starts when no call is in progress, and after 0.3 s in any case."""
    running = _running_here()
    try:
        async with asyncio.timeout(_LONGEST_DELAY_SECONDS), running.idle:
            await running.idle.wait_for(running.is_idle)
            running.low += 1
    except TimeoutError:
        running.low += 1
    try:
        yield
    finally:
        running.low -= 1
        await _notify_if_idle(running)


def _running_here() -> _Running:
    return _running.setdefault(asyncio.get_running_loop(), _Running())


async def _notify_if_idle(running: _Running) -> None:
    if running.is_idle():
        async with running.idle:
            running.idle.notify_all()
