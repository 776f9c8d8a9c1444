"""The watcher of offers, over a list of offers instead of a database."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

import pytest

from coordinator.jobs.wakeup import SETTLE_SECONDS, Offer, OfferCursor, Watcher

Result = TypeVar("Result")
PATIENCE_SECONDS = 20


def run(flow: Coroutine[None, None, Result]) -> Result:
    return asyncio.run(asyncio.wait_for(flow, PATIENCE_SECONDS))


class Offers:
    """Stands where the jobs table stands; counts how often it is read."""

    def __init__(self, *offers: Offer) -> None:
        self.rows = list(offers)
        self.readings = 0
        self.broken = False

    def newest(self) -> int:
        return max((number for number, _, _ in self.rows), default=0)

    def after(self, number: int) -> list[Offer]:
        self.readings += 1
        if self.broken:
            self.broken = False
            raise ConnectionError("the database is away")
        return [offer for offer in self.rows if offer[0] > number]

    def watcher(self) -> Watcher:
        return Watcher(self.newest, self.after, lambda: None, poll_seconds=0.001)

    async def read_again(self) -> None:
        seen = self.readings
        while self.readings < seen + 2:
            await asyncio.sleep(0.001)


def watching() -> list[asyncio.Task[None]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == "job-watcher"]


def test_an_offer_wakes_its_worker_and_nobody_else() -> None:
    offers = Offers((1, "job_a", "wkr_1"))

    async def flow() -> tuple[bool, bool]:
        watcher = offers.watcher()
        async with watcher.waiting("wkr_1") as first, watcher.waiting("wkr_2") as second:
            first.clear()
            second.clear()
            offers.rows.append((2, "job_b", "wkr_2"))
            await second.wait()
            await offers.read_again()
            return first.is_set(), second.is_set()

    assert run(flow()) == (False, True)


def test_everybody_who_waits_for_the_same_worker_is_woken() -> None:
    offers = Offers()

    async def flow() -> bool:
        watcher = offers.watcher()
        async with watcher.waiting("wkr_1") as first, watcher.waiting("wkr_1") as second:
            offers.rows.append((1, "job_a", "wkr_1"))
            await asyncio.gather(first.wait(), second.wait())
            return first.is_set() and second.is_set()

    assert run(flow())


def test_an_offer_that_comes_to_light_after_a_later_one_still_wakes() -> None:
    offers = Offers()

    async def flow() -> bool:
        watcher = offers.watcher()
        async with watcher.waiting("wkr_1") as first, watcher.waiting("wkr_2") as second:
            first.clear()
            offers.rows.append((8, "job_b", "wkr_2"))
            await second.wait()
            await offers.read_again()
            offers.rows.append((7, "job_a", "wkr_1"))
            return await first.wait()

    assert run(flow())


def test_a_reading_that_fails_ends_no_wait() -> None:
    offers = Offers()

    async def flow() -> bool:
        async with offers.watcher().waiting("wkr_1") as woken:
            offers.broken = True
            await offers.read_again()
            offers.rows.append((1, "job_a", "wkr_1"))
            return await woken.wait()

    assert run(flow())


def test_nothing_is_read_while_nobody_waits() -> None:
    offers = Offers()

    async def flow() -> list[asyncio.Task[None]]:
        watcher = offers.watcher()
        async with watcher.waiting("wkr_1"):
            await offers.read_again()
        await asyncio.gather(*watching())
        return watching()

    assert run(flow()) == []


def test_a_watcher_that_rested_watches_again() -> None:
    offers = Offers()

    async def flow() -> bool:
        watcher = offers.watcher()
        async with watcher.waiting("wkr_1"):
            pass
        await asyncio.gather(*watching())
        async with watcher.waiting("wkr_1") as woken:
            woken.clear()
            offers.rows.append((1, "job_a", "wkr_1"))
            return await woken.wait()

    assert run(flow())


class TestOfferCursor:
    def test_an_offer_is_new_once(self) -> None:
        known = OfferCursor(0)
        assert known.new([(1, "job_a", "wkr_1")], now=0.0) == [(1, "job_a", "wkr_1")]
        assert known.new([(1, "job_a", "wkr_1")], now=0.1) == []

    def test_the_same_job_offered_again_is_new(self) -> None:
        known = OfferCursor(0)
        known.new([(1, "job_a", "wkr_1")], now=0.0)
        assert known.new([(2, "job_a", "wkr_1")], now=0.1) == [(2, "job_a", "wkr_1")]

    @pytest.mark.parametrize(("now", "settled"), [(SETTLE_SECONDS - 1, 0), (SETTLE_SECONDS + 1, 5)])
    def test_a_number_settles_when_no_earlier_one_can_come_to_light_any_more(self, now: float, settled: int) -> None:
        known = OfferCursor(0)
        known.new([(5, "job_a", "wkr_1")], now=0.0)
        known.new([], now=now)
        assert known.position == settled
