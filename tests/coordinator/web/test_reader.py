"""Reader of open waits, with marks from a dictionary in place of the database."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import TypeVar

import pytest

from coordinator.auth.principals import Principal
from coordinator.errors import Unauthenticated
from coordinator.web.wait_statements import Mark, Observation, Subject
from coordinator.web.waits import Reader, Wait

Result = TypeVar("Result")
PATIENCE_SECONDS = 20
FIRST, SECOND = Subject("federation", "fed_1"), Subject("job", "job_1")
KEY, WORKER = Principal("key", "key_1", "org_1", "viewer"), Principal("worker", "wkr_1", "org_1", "worker")


def run(flow: Coroutine[None, None, Result]) -> Result:
    return asyncio.run(asyncio.wait_for(flow, PATIENCE_SECONDS))


class Tables:
    """Stands where the database stands; keeps what each reading asked for."""

    def __init__(self) -> None:
        self.marks: dict[Subject, Mark] = {FIRST: 1, SECOND: "leased"}
        self.ended: dict[str, str] = {}
        self.questions: list[tuple[set[Subject], set[str]]] = []
        self.broken = False

    def look(self, subjects: Iterable[Subject], principals: Iterable[Principal]) -> Observation:
        self.questions.append((set(subjects), {one.id for one in principals}))
        if self.broken:
            self.broken = False
            raise ConnectionError("the database is away")
        return Observation(
            {subject: self.marks[subject] for subject in subjects if subject in self.marks}, self.ended
        )

    def reader(self) -> Reader:
        return Reader(self.look, tick_seconds=0.001)

    async def read_again(self) -> None:
        seen = len(self.questions)
        while len(self.questions) < seen + 2:
            await asyncio.sleep(0.001)


def readers() -> list[asyncio.Task[None]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == "wait-reader"]


@pytest.fixture
def tables() -> Tables:
    return Tables()


def test_all_who_wait_are_asked_for_together(tables: Tables) -> None:
    async def flow() -> None:
        reader = tables.reader()
        with reader.serving(Wait(KEY, FIRST, 1)), reader.serving(Wait(KEY, FIRST, 1)):
            with reader.serving(Wait(WORKER, SECOND, "leased")), reader.serving(Wait(WORKER)):
                await tables.read_again()

    run(flow())
    assert tables.questions[0] == ({FIRST, SECOND}, {"key_1", "wkr_1"})


@pytest.mark.parametrize(("subject", "mark"), [(FIRST, 2), (SECOND, "submitted"), (FIRST, None)])
def test_a_new_mark_wakes_who_watches_it_and_nobody_else(tables: Tables, subject: Subject, mark: Mark) -> None:
    async def flow() -> tuple[bool, bool]:
        reader, first, second = tables.reader(), Wait(KEY, FIRST, 1), Wait(KEY, SECOND, "leased")
        with reader.serving(first), reader.serving(second):
            await tables.read_again()
            tables.marks |= {subject: mark}
            if mark is None:
                del tables.marks[subject]
            concerned = first if subject == FIRST else second
            assert await concerned.change(PATIENCE_SECONDS)
            await tables.read_again()
            return first.wakeup.is_set(), second.wakeup.is_set()

    assert run(flow()) == (subject == FIRST, subject == SECOND)


def test_what_changed_before_the_wait_began_wakes_too(tables: Tables) -> None:
    async def flow() -> bool:
        wait = Wait(KEY, FIRST, 0)
        with tables.reader().serving(wait):
            return await wait.change(PATIENCE_SECONDS)

    assert run(flow())


def test_without_a_change_the_time_runs_out(tables: Tables) -> None:
    async def flow() -> list[bool]:
        wait = Wait(KEY, FIRST, 1)
        with tables.reader().serving(wait):
            return [await wait.change(0.05), await wait.change(0), await wait.change(-1)]

    assert run(flow()) == [False] * 3


@pytest.mark.parametrize(("principal", "code"), [(KEY, "key_revoked"), (WORKER, "worker_revoked")])
def test_a_revoked_caller_is_refused_at_once(tables: Tables, principal: Principal, code: str) -> None:
    async def flow() -> str:
        wait = Wait(principal)
        with tables.reader().serving(wait):
            tables.ended = {principal.id: code}
            with pytest.raises(Unauthenticated) as refusal:
                await wait.change(PATIENCE_SECONDS)
            return refusal.value.code

    assert run(flow()) == code


def test_a_reading_that_fails_ends_no_wait(tables: Tables) -> None:
    async def flow() -> bool:
        wait = Wait(KEY, FIRST, 1)
        with tables.reader().serving(wait):
            tables.broken = True
            await tables.read_again()
            tables.marks[FIRST] = 2
            return await wait.change(PATIENCE_SECONDS)

    assert run(flow())
    assert not tables.broken


def test_nothing_is_read_while_nobody_waits_and_all_again_for_the_next(tables: Tables) -> None:
    async def flow() -> int:
        reader = tables.reader()
        with reader.serving(Wait(KEY, FIRST, 1)):
            await tables.read_again()
        await asyncio.gather(*readers())
        before = len(tables.questions)
        assert not readers()
        with reader.serving(Wait(KEY, FIRST, 1)):
            await tables.read_again()
        return len(tables.questions) - before

    assert run(flow()) >= 2
