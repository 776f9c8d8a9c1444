"""Priorities of the calls of one event loop, and the limit on waiting."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import TypeVar

from coordinator.db.batching import Batcher
from coordinator.db.priority import high, low

PATIENCE_SECONDS = 20
Result = TypeVar("Result")


def run(flow: Coroutine[None, None, Result]) -> Result:
    return asyncio.run(asyncio.wait_for(flow, PATIENCE_SECONDS))


class Call:
    """A call that runs until `go`. `order`: names in the order in which calls began."""

    def __init__(self, name: str, turn: AbstractAsyncContextManager[None], order: list[str]) -> None:
        self.go, self.begun = asyncio.Event(), asyncio.Event()
        self._name, self._turn, self._order = name, turn, order
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._turn:
            self._order.append(self._name)
            self.begun.set()
            await self.go.wait()

    async def end(self) -> None:
        self.go.set()
        await self.task


def test_an_urgent_call_begins_whatever_is_under_way() -> None:
    async def flow() -> list[str]:
        order: list[str] = []
        calls = []
        for name, turn in (("other", low()), ("first", high()), ("second", high())):
            calls.append(Call(name, turn, order))
            await calls[-1].begun.wait()
        await asyncio.gather(*(call.end() for call in calls))
        return order

    assert run(flow()) == ["other", "first", "second"]


def test_a_patient_call_lets_those_that_run_end_and_those_that_come_go_first() -> None:
    async def flow() -> list[str]:
        order: list[str] = []
        running = Call("running", high(), order)
        await running.begun.wait()
        waiting = Call("patient", low(), order)
        await asyncio.sleep(0.01)
        late = Call("late", high(), order)
        await late.begun.wait()
        await running.end()
        await asyncio.sleep(0.01)
        order.append("late ends")
        await late.end()
        await waiting.begun.wait()
        await waiting.end()
        return order

    assert run(flow()) == ["running", "late", "late ends", "patient"]


def test_patient_calls_run_one_after_another() -> None:
    async def flow() -> list[str]:
        order: list[str] = []
        calls = [Call(name, low(), order) for name in "ab"]
        await calls[0].begun.wait()
        await asyncio.sleep(0.01)
        order.append("a ends")
        await calls[0].end()
        await calls[1].begun.wait()
        await calls[1].end()
        return order

    assert run(flow()) == ["a", "a ends", "b"]


def test_a_call_that_never_ends_holds_nobody_up() -> None:
    async def flow() -> list[str]:
        order: list[str] = []
        calls = [Call(name, turn, order) for name, turn in (("stuck", high()), ("a", low()), ("b", low()))]
        for call in calls:
            await call.begun.wait()
        await asyncio.gather(*(call.end() for call in calls))
        return order

    assert run(flow()) == ["stuck", "a", "b"]


def test_who_gives_up_waiting_leaves_nothing_behind() -> None:
    async def flow() -> float:
        order: list[str] = []
        running = Call("running", high(), order)
        await running.begun.wait()
        waiting = Call("given up", low(), order)
        await asyncio.sleep(0.01)
        waiting.task.cancel()
        with suppress(asyncio.CancelledError):
            await waiting.task
        await running.end()
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(20):
            async with low():
                pass
        assert order == ["running"]
        return loop.time() - began

    assert run(flow()) < 0.3  # none of them waited until its patience was over


def fail(asked: Sequence[int]) -> list[int | Exception]:
    raise ValueError(f"of {asked}")


def double(asked: Sequence[int]) -> list[int | Exception]:
    return [2 * number for number in asked]


def test_a_call_that_fails_lets_the_next_one_begin() -> None:
    async def flow() -> tuple[list[int | BaseException], float]:
        loop = asyncio.get_running_loop()
        failing, doubling = Batcher(fail, low_priority=True), Batcher(double, low_priority=True)
        began = loop.time()
        answers = await asyncio.gather(failing(1), doubling(1), doubling(2), return_exceptions=True)
        return answers, loop.time() - began

    answers, seconds = run(flow())
    assert isinstance(answers[0], ValueError)
    assert answers[1:] == [2, 4]
    assert seconds < 0.3  # nobody waited until its patience was over
