"""PostgreSQL notifications: received at once, never missed, and never required."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from anyio import to_thread
from sqlalchemy import func, select, text

from coordinator.db.listener import Listener
from coordinator.db.sessions import listen, reading, writing
from coordinator.jobs.wakeup import Offer, Watcher
from tests.support.logged import logged

CHANNEL = "fedloom_test"
PATIENCE_SECONDS = 30
POLL_SECONDS = 0.01
Result = TypeVar("Result")


def run(flow: Coroutine[None, None, Result]) -> Result:
    return asyncio.run(asyncio.wait_for(flow, PATIENCE_SECONDS))


def tell(words: str = "", channel: str = CHANNEL) -> None:
    with writing() as session:
        session.execute(select(func.pg_notify(channel, words)))


class Heard:
    """Listener of a channel, and what they told."""

    def __init__(self, channel: str = CHANNEL) -> None:
        self.texts: list[str] = []
        self.notices = Listener(lambda: listen(channel), self.texts.append, POLL_SECONDS)

    async def listen(self) -> None:
        while not self.notices.listening:
            await self.notices.wait()

    async def hear(self, count: int) -> list[str]:
        while len(self.texts) < count:
            await asyncio.sleep(0.01)
        return self.texts


def backends_listening(channel: str = CHANNEL) -> list[int]:
    with reading() as session:
        found = text("SELECT pid FROM pg_stat_activity WHERE query = :query AND datname = current_database()")
        return list(session.scalars(found, {"query": f"LISTEN {channel}"}))


async def waits_within(notices: Listener, seconds: float) -> int:
    ends = asyncio.get_running_loop().time() + seconds
    waits = 0
    while asyncio.get_running_loop().time() < ends:
        await notices.wait()
        waits += 1
    return waits


def test_where_nothing_is_told_a_look_is_due_again_and_again() -> None:
    assert run(waits_within(Listener(lambda: None, lambda _: None, POLL_SECONDS), 1.5)) > 30


@pytest.mark.engines
class TestPostgresql:
    def test_a_commit_is_told_and_nothing_before_it(self, data_folder: Path) -> None:
        async def flow() -> tuple[list[str], list[str]]:
            heard = Heard()
            await heard.listen()
            with writing() as session:
                session.execute(select(func.pg_notify(CHANNEL, "a")))
                await asyncio.sleep(0.2)
                before = list(heard.texts)
            after = await heard.hear(1)
            heard.notices.close()
            return before, after

        assert run(flow()) == ([], ["a"])

    def test_while_it_listens_a_look_is_due_every_second(self, data_folder: Path) -> None:
        async def flow() -> int:
            heard = Heard()
            await heard.listen()
            waits = await waits_within(heard.notices, 2.5)
            heard.notices.close()
            return waits

        assert run(flow()) <= 3

    def test_a_lost_connection_is_made_again(self, data_folder: Path) -> None:
        def end_backends() -> None:
            with writing() as session:
                session.execute(select(func.pg_terminate_backend(backends_listening()[0])))

        async def flow() -> list[str]:
            heard = Heard()
            await heard.listen()
            await to_thread.run_sync(end_backends)
            while heard.notices.listening:
                await heard.notices.wait()
            await heard.listen()
            await to_thread.run_sync(tell, "a")
            texts = await heard.hear(1)
            heard.notices.close()
            return texts

        with logged() as lines:
            assert run(flow()) == ["a"]
        assert [line["event"] for line in lines()] == ["notices_lost"]

    def test_nothing_is_left_open(self, data_folder: Path) -> None:
        async def flow() -> int:
            heard = Heard()
            await heard.listen()
            during = len(backends_listening())
            heard.notices.close()
            while backends_listening():
                await asyncio.sleep(0.01)
            return during

        assert run(flow()) == 1

    def test_a_server_that_takes_no_connection_is_looked_at_often(self, data_folder: Path) -> None:
        def refuse() -> None:
            raise ConnectionError("too many connections")

        with logged() as lines:
            assert run(waits_within(Listener(refuse, lambda _: None, POLL_SECONDS), 1.5)) > 30
        assert [line["event"] for line in lines()] == ["notices_not_heard"]

    def test_who_is_stopped_while_it_connects_leaves_nothing_open(self, data_folder: Path) -> None:
        begun = threading.Event()
        made: list[Any] = []

        def connect() -> Any:
            begun.set()
            time.sleep(0.2)
            made.append(listen(CHANNEL))
            return made[0]

        async def flow() -> None:
            watcher = Watcher(lambda: 0, lambda _: [], connect, POLL_SECONDS)
            async with watcher.waiting("wkr_1"):
                await asyncio.to_thread(begun.wait, PATIENCE_SECONDS)
                watching = [task for task in asyncio.all_tasks() if task.get_name() == "job-watcher"]
                watching[0].cancel()
                await asyncio.gather(*watching, return_exceptions=True)
            while not (made and made[0].closed):
                await asyncio.sleep(0.01)

        run(flow())


@pytest.mark.engines
class TestWatcher:
    """Over offers in a list, told of on a real channel."""

    @pytest.fixture(autouse=True)
    def nobody_listens(self, data_folder: Path) -> None:
        """A backend that the test before this one left ends a moment later."""
        while backends_listening():
            time.sleep(0.01)

    async def find_untold(self, offers: list[Offer], woken: asyncio.Event) -> None:
        """Once it has listened for a while, an offer comes of which nothing is told, and its worker is woken."""
        while not backends_listening():
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.5)
        woken.clear()
        offers.append((1, "job_a", "wkr_1"))
        await woken.wait()

    def watcher(self, offers: list[Offer], readings: list[int]) -> Watcher:
        def after(number: int) -> list[Offer]:
            readings.append(number)
            return [offer for offer in offers if offer[0] > number]

        return Watcher(lambda: 0, after, lambda: listen(CHANNEL), POLL_SECONDS)

    def test_who_is_told_of_is_woken_without_a_look(self, data_folder: Path) -> None:
        readings: list[int] = []

        async def flow() -> tuple[int, bool]:
            watcher = self.watcher([], readings)
            async with watcher.waiting("wkr_1") as first, watcher.waiting("wkr_2") as second:
                while not backends_listening():
                    await asyncio.sleep(0.05)
                await asyncio.sleep(0.5)
                before = len(readings)
                first.clear()
                second.clear()
                await to_thread.run_sync(tell, "wkr_3 wkr_2")
                await second.wait()
                return len(readings) - before, first.is_set()

        looks, woken = run(flow())
        assert looks <= 1
        assert not woken

    def test_an_offer_that_was_not_told_is_found_and_more_are_looked_for(self, data_folder: Path) -> None:
        """As behind a pooler that passes no notices on."""
        offers: list[Offer] = []
        readings: list[int] = []

        async def flow() -> int:
            async with self.watcher(offers, readings).waiting("wkr_1") as woken:
                await self.find_untold(offers, woken)
                await asyncio.sleep(1.5)
                before = len(readings)
                await asyncio.sleep(1.0)
                return len(readings) - before

        with logged() as lines:
            assert run(flow()) > 20
        assert [line["event"] for line in lines()] == ["notices_missed"]

    def test_one_that_is_told_a_little_after_it_was_found_is_no_reason_to_distrust(self, data_folder: Path) -> None:
        offers: list[Offer] = []
        readings: list[int] = []

        async def flow() -> None:
            async with self.watcher(offers, readings).waiting("wkr_1") as woken:
                await self.find_untold(offers, woken)
                await to_thread.run_sync(tell, "wkr_1")
                seen = len(readings)
                while len(readings) < seen + 2:
                    await asyncio.sleep(0.05)

        with logged() as lines:
            run(flow())
        assert not lines()
