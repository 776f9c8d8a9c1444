"""Request batching, with plain functions in place of database calls."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from typing import TypeVar

import pytest
from sqlalchemy.exc import OperationalError

from coordinator.db.batching import Batcher, map_errors
from coordinator.errors import Conflict

PATIENCE_SECONDS = 20
REQUEST: ContextVar[str] = ContextVar("REQUEST", default="nobody's")
Result = TypeVar("Result")


def run(flow: Coroutine[None, None, Result]) -> Result:
    return asyncio.run(asyncio.wait_for(flow, PATIENCE_SECONDS))


class Doubling:
    """Answers with twice the number; the first call waits until `go`. `calls`: what each was asked."""

    def __init__(self, refuse: Callable[[Sequence[int]], Exception | None] = lambda asked: None) -> None:
        self.calls: list[list[int]] = []
        self.contexts: list[str] = []
        self.begun, self.go = threading.Event(), threading.Event()
        self._refuse = refuse

    def __call__(self, asked: Sequence[int]) -> list[int | Exception]:
        self.calls.append(list(asked))
        self.contexts.append(REQUEST.get())
        self.begun.set()
        assert self.go.wait(PATIENCE_SECONDS)
        refusal = self._refuse(asked)
        if refusal is not None:
            raise refusal
        return [Conflict("odd", "It is odd.") if number % 2 else 2 * number for number in asked]


async def all_of(doubling: Doubling, first: int, *rest: int) -> list[int | BaseException]:
    """The answers, where the rest asked while the call for the first was running."""
    gathering = Batcher(doubling)
    running = asyncio.create_task(gathering(first))
    await asyncio.to_thread(doubling.begun.wait, PATIENCE_SECONDS)
    waiting = [asyncio.create_task(gathering(number)) for number in rest]
    await asyncio.sleep(0)
    doubling.go.set()
    return await asyncio.gather(running, *waiting, return_exceptions=True)


def test_those_who_come_while_a_call_runs_are_answered_by_the_next_one() -> None:
    doubling = Doubling()
    assert run(all_of(doubling, 2, 4, 6, 8)) == [4, 8, 12, 16]
    assert doubling.calls == [[2], [4, 6, 8]]


def test_who_comes_when_nothing_runs_waits_for_nobody() -> None:
    doubling = Doubling()
    doubling.go.set()
    gathering = Batcher(doubling)

    async def flow() -> list[int]:
        return [await gathering(2), await gathering(4)]

    assert run(flow()) == [4, 8]
    assert doubling.calls == [[2], [4]]


def test_with_a_pause_the_first_is_answered_at_once_and_those_who_come_soon_after_share_a_call() -> None:
    doubling = Doubling()
    doubling.go.set()
    gathering = Batcher(doubling, pause_seconds=0.2)

    async def later(number: int, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return await gathering(number)

    async def flow() -> list[int]:
        first = await gathering(2)
        return [first, *await asyncio.gather(later(4, 0.0), later(6, 0.02))]

    assert run(flow()) == [4, 8, 12]
    assert doubling.calls == [[2], [4, 6]]


def test_a_pause_for_a_crowd_keeps_nobody_waiting_who_asks_alone() -> None:
    doubling = Doubling()
    doubling.go.set()
    gathering = Batcher(doubling, pause_seconds=PATIENCE_SECONDS, only_if_busy=True)

    async def flow() -> list[int]:
        return [await gathering(number) for number in range(0, 20, 2)]

    assert run(flow()) == list(range(0, 40, 4))
    assert len(doubling.calls) == 10


def test_a_pause_for_a_crowd_is_made_once_there_is_one() -> None:
    doubling = Doubling()
    doubling.go.set()
    gathering = Batcher(doubling, pause_seconds=0.2, only_if_busy=True)

    async def later(number: int, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return await gathering(number)

    async def flow() -> list[int]:
        crowd = await asyncio.gather(*(gathering(number) for number in range(0, 8, 2)))
        return [*crowd, *await asyncio.gather(later(8, 0.0), later(10, 0.02))]

    assert run(flow()) == list(range(0, 24, 4))
    assert doubling.calls == [[0, 2, 4, 6], [8, 10]]


def test_a_refusal_is_the_answer_of_the_one_it_is_for() -> None:
    answers = run(all_of(Doubling(), 2, 3, 4))
    assert [answers[0], answers[2]] == [4, 8]
    assert isinstance(answers[1], Conflict)


def test_a_call_that_fails_fails_those_alone_whom_it_concerns() -> None:
    doubling = Doubling(lambda asked: ValueError("six") if 6 in asked else None)
    answers = run(all_of(doubling, 2, 4, 6, 8))
    assert [answers[0], answers[1], answers[3]] == [4, 8, 16]
    assert isinstance(answers[2], ValueError)
    assert doubling.calls == [[2], [4, 6, 8], [4], [6], [8]]


def test_a_database_that_is_away_is_asked_once_for_all() -> None:
    away = OperationalError("SELECT 1", {}, ConnectionError("away"))
    doubling = Doubling(lambda asked: away if 4 in asked else None)
    assert run(all_of(doubling, 2, 4, 6)) == [4, away, away]
    assert doubling.calls == [[2], [4, 6]]


def test_who_goes_away_keeps_nobody_waiting() -> None:
    doubling = Doubling()

    async def flow() -> int:
        gathering = Batcher(doubling)
        gone = asyncio.create_task(gathering(2))
        await asyncio.to_thread(doubling.begun.wait, PATIENCE_SECONDS)
        gone.cancel()
        waiting = asyncio.create_task(gathering(4))
        await asyncio.sleep(0)
        doubling.go.set()
        return await waiting

    assert run(flow()) == 8


def test_a_call_that_answers_too_few_leaves_nobody_waiting_and_is_made_again() -> None:
    gathering = Batcher(lambda asked: [2 * number for number in asked if number != 6])

    async def flow() -> list[int | BaseException]:
        both = await asyncio.gather(gathering(6), gathering(4), return_exceptions=True)
        return [*both, await gathering(2)]

    answers = run(flow())
    assert [type(answer) for answer in answers[:2]] == [asyncio.CancelledError] * 2
    assert answers[2] == 4


def test_a_call_is_about_nobody_in_particular() -> None:
    doubling = Doubling()
    doubling.go.set()

    async def flow() -> int:
        REQUEST.set("the first one's")
        return await Batcher(doubling)(2)

    assert run(flow()) == 4
    assert doubling.contexts == ["nobody's"]


def test_event_loops_do_not_wait_for_each_other() -> None:
    both_run, answers = threading.Barrier(2), []

    def answer_all(asked: Sequence[int]) -> list[int]:
        both_run.wait(PATIENCE_SECONDS)
        return [2 * number for number in asked]

    gathering = Batcher(answer_all)

    async def ask() -> int:
        return await gathering(2)

    threads = [threading.Thread(target=lambda: answers.append(run(ask()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert answers == [4, 4]


def test_each_goes_on_after_a_refusal() -> None:
    def half(number: int) -> int:
        if number % 2:
            raise Conflict("odd", "It is odd.")
        return number // 2

    answers = map_errors([4, 3, 2], half)
    assert [answers[0], answers[2]] == [2, 1]
    assert isinstance(answers[1], Conflict)
    with pytest.raises(ZeroDivisionError):
        map_errors([1], lambda number: number // 0)


def test_a_patient_call_waits_for_another_gatherings_call() -> None:
    async def flow() -> tuple[list[list[int]], int]:
        urgent, patient = Doubling(), Doubling()
        patient.go.set()
        first = asyncio.create_task(Batcher(urgent)(2))
        await asyncio.to_thread(urgent.begun.wait, PATIENCE_SECONDS)
        second = asyncio.create_task(Batcher(patient, low_priority=True)(4))
        await asyncio.sleep(0.05)
        meanwhile = list(patient.calls)
        urgent.go.set()
        await first
        return meanwhile, await second

    assert run(flow()) == ([], 8)
