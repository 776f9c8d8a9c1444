"""One call for many callers: what is asked while a call runs is answered together by the next one.

A thousand agents that beat, renew and poll would otherwise each take a thread, a connection and a commit. Alone a
caller waits no longer than it would have; the more come at once, the more of them share a transaction.
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

_OF_ALL = (OperationalError, TimeoutError)
_CROWDED_SIZE = 1.2
_NEWEST_WEIGHT = 0.1
Question = TypeVar("Question")
Answer = TypeVar("Answer")


@dataclass(eq=False, slots=True)
class _Asked(Generic[Question, Answer]):
    """Of one event loop: those that wait for the next call, and the task that makes it."""

    waiting: list[tuple[Question, asyncio.Future[Answer]]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    next_at: float = 0.0
    usual_size: float = 1.0  # of a group, lately
    # A thread beside the pool: that may be full of those who wait for this very answer.
    thread: CapacityLimiter = field(default_factory=partial(CapacityLimiter, 1))


class Gathering(Generic[Question, Answer]):
    """Awaited with one question. `answer_all` runs in a thread, once at a time in each event loop.

    Between the beginnings of two calls there are `pause_seconds`, in which others come; with `if_crowded` only while
    groups have had several in them lately, so that one who asks alone, again and again, never waits. A `patient` call
    lets others go first.

    It gives an answer for each question, in their order; an exception among them is raised for the one who asked.
    Where it raises, nothing came of the call: what the database has to do with it is raised for all of them, after
    anything else each question is asked alone, so that it fails those alone whom it concerns.
    """

    def __init__(
        self,
        answer_all: Callable[[Sequence[Question]], Sequence[Answer | Exception]],
        pause_seconds: float = 0.0,
        *,
        if_crowded: bool = False,
        patient: bool = False,
    ) -> None:
        self._answer_all, self._pause_seconds, self._if_crowded = answer_all, pause_seconds, if_crowded
        self._turn = priority.patient if patient else priority.urgent
        self._asked: WeakKeyDictionary[asyncio.AbstractEventLoop, _Asked[Question, Answer]] = WeakKeyDictionary()

    async def __call__(self, question: Question) -> Answer:
        loop = asyncio.get_running_loop()
        asked = self._asked.setdefault(loop, _Asked())
        mine: asyncio.Future[Answer] = loop.create_future()
        asked.waiting.append((question, mine))
        if asked.task is None:  # in a context of its own: what the first of them is about is not what all are about
            asked.task = loop.create_task(self._answer(asked), context=Context())
        return await mine

    async def _answer(self, asked: _Asked[Question, Answer]) -> None:
        group: list[tuple[Question, asyncio.Future[Answer]]] = []
        time = asyncio.get_running_loop().time
        try:
            while asked.waiting:
                if (early_seconds := asked.next_at - time()) > 0:
                    await asyncio.sleep(early_seconds)
                group, asked.waiting = asked.waiting, []
                asked.usual_size += _NEWEST_WEIGHT * (len(group) - asked.usual_size)
                crowded = asked.usual_size > _CROWDED_SIZE
                asked.next_at = time() + self._pause_seconds * (crowded or not self._if_crowded)
                answers = await self._answers(asked, [question for question, _ in group])
                if len(answers) != len(group):
                    raise RuntimeError(f"{len(answers)} answers to {len(group)} questions: {self._answer_all!r}")
                for (_, waiter), answer in zip(group, answers, strict=True):
                    _tell(waiter, answer)
        finally:
            left, asked.waiting, asked.task = [*group, *asked.waiting], [], None
            for _, waiter in left:  # if this broke off: nobody waits for what will not come
                waiter.cancel()

    async def _answers(
        self, asked: _Asked[Question, Answer], questions: Sequence[Question]
    ) -> Sequence[Answer | Exception]:
        try:
            async with self._turn():
                return await to_thread.run_sync(self._answer_all, questions, limiter=asked.thread)
        except _OF_ALL as error:
            return [error] * len(questions)
        except Exception as error:
            if len(questions) == 1:
                return [error]
        return [(await self._answers(asked, [question]))[0] for question in questions]


def each(
    questions: Sequence[Question], answer: Callable[[Question], Answer | CoordinatorError]
) -> list[Answer | CoordinatorError]:
    """The answers to all of them, where one that is refused is no reason to refuse another."""
    answers: list[Answer | CoordinatorError] = []
    for question in questions:
        try:
            answers.append(answer(question))
        except CoordinatorError as refusal:
            answers.append(refusal)
    return answers


def _tell(waiter: asyncio.Future[Answer], answer: Answer | Exception) -> None:
    if waiter.done():  # whoever asked has gone
        return
    if isinstance(answer, Exception):
        waiter.set_exception(answer)
    else:
        waiter.set_result(answer)
