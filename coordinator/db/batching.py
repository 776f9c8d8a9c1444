"""Request batching: calls that arrive while a batch is running are served together by the next batch.

Heartbeats, lease renewals and polls of a thousand agents would otherwise each take a thread, a connection and a
commit. A lone call waits no longer than without batching. The more calls arrive at once, the more of them share a
transaction.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from anyio import CapacityLimiter, to_thread
from sqlalchemy.exc import OperationalError, TimeoutError  # noqa: A004 - the pool's

from coordinator.db import priority
from coordinator.errors import CoordinatorError

_BATCH_ERRORS = (OperationalError, TimeoutError)
"""Errors of the database itself: they fail every call of a batch, so its items are not tried one by one."""
_BUSY_SIZE = 1.2
_NEWEST_WEIGHT = 0.1
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False, slots=True)
class _Queue(Generic[Item, Result]):
    """Calls of one event loop that wait for the next batch, and the task that serves them."""

    waiting: list[tuple[Item, asyncio.Future[Result]]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    next_at: float = 0.0
    usual_size: float = 1.0  # moving average of the batch size
    # Not a thread of the pool: all of those may be held by calls that wait for this very batch.
    thread: CapacityLimiter = field(default_factory=partial(CapacityLimiter, 1))


class Batcher(Generic[Item, Result]):
    """Awaited with one item. `serve_all` runs in a thread, one batch at a time in each event loop.

    Batches start at least `pause_seconds` apart, so that more calls can join. With `only_if_busy` the pause applies
    only while recent batches held several calls; a caller that is alone then never waits. A batch of `low_priority`
    lets others start first.

    `serve_all` returns one result for each item, in order. An exception in place of a result is raised in that item's
    call. If `serve_all` raises, nothing of the batch has taken effect. An error of the database is raised in all
    calls. After any other error each item is served alone, so that only the calls at fault fail.
    """

    def __init__(
        self,
        serve_all: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        pause_seconds: float = 0.0,
        *,
        only_if_busy: bool = False,
        low_priority: bool = False,
    ) -> None:
        self._serve_all, self._pause_seconds, self._only_if_busy = serve_all, pause_seconds, only_if_busy
        self._turn = priority.low if low_priority else priority.high
        self._queues: WeakKeyDictionary[asyncio.AbstractEventLoop, _Queue[Item, Result]] = WeakKeyDictionary()

    async def __call__(self, item: Item) -> Result:
        loop = asyncio.get_running_loop()
        queue = self._queues.setdefault(loop, _Queue())
        future: asyncio.Future[Result] = loop.create_future()
        queue.waiting.append((item, future))
        if queue.task is None:  # in an empty context: the first caller's context variables do not apply to the others
            queue.task = loop.create_task(self._serve(queue), context=Context())
        return await future

    async def _serve(self, queue: _Queue[Item, Result]) -> None:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        time = asyncio.get_running_loop().time
        try:
            while queue.waiting:
                if (early_seconds := queue.next_at - time()) > 0:
                    await asyncio.sleep(early_seconds)
                batch, queue.waiting = queue.waiting, []
                queue.usual_size += _NEWEST_WEIGHT * (len(batch) - queue.usual_size)
                is_busy = queue.usual_size > _BUSY_SIZE
                queue.next_at = time() + self._pause_seconds * (is_busy or not self._only_if_busy)
                results = await self._results(queue, [item for item, _ in batch])
                if len(results) != len(batch):
                    raise RuntimeError(f"{len(results)} results for {len(batch)} items: {self._serve_all!r}")
                for (_, future), result in zip(batch, results, strict=True):
                    _resolve(future, result)
        finally:
            remaining, queue.waiting, queue.task = [*batch, *queue.waiting], [], None
            for _, future in remaining:  # after an interruption no call waits for a result that never comes
                future.cancel()

    async def _results(self, queue: _Queue[Item, Result], items: Sequence[Item]) -> Sequence[Result | Exception]:
        try:
            async with self._turn():
                return await to_thread.run_sync(self._serve_all, items, limiter=queue.thread)
        except _BATCH_ERRORS as error:
            return [error] * len(items)
        except Exception as error:
            if len(items) == 1:
                return [error]
        return [(await self._results(queue, [item]))[0] for item in items]


def map_errors(
    items: Sequence[Item], serve: Callable[[Item], Result | CoordinatorError]
) -> list[Result | CoordinatorError]:
    """`serve` applied to each item. A CoordinatorError takes the place of that item's result and fails no other."""
    results: list[Result | CoordinatorError] = []
    for item in items:
        try:
            results.append(serve(item))
        except CoordinatorError as error:
            results.append(error)
    return results


def _resolve(future: asyncio.Future[Result], result: Result | Exception) -> None:
    if future.done():  # its caller was cancelled
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
