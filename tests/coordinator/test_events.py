"""Events come to light in the order of their numbers, however many write at once."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from coordinator import events
from coordinator.db.sessions import before_commit, reading, utcnow, writing
from coordinator.models import Delivery, Webhook
from coordinator.models.base import new_id
from tests.coordinator.clients import scene

WRITERS, EACH = 6, 15
DEADLINE_SECONDS = 60.0


@pytest.fixture
def federation_id(data_folder: Path) -> str:
    with writing() as session:
        return scene.federation(session, scene.organization(session).id).id


def numbers_after(federation_id: str, number: int) -> list[int]:
    with reading() as session:
        return [event.number for event in events.read_after(session, federation_id, number, 1000)]


def append(federation_id: str) -> None:
    with writing() as session:
        events.append(session, federation_id, "federation.started")


class TestOrder:
    def test_who_reads_while_many_write_misses_none(self, federation_id: str) -> None:
        def write_some() -> None:
            for _ in range(EACH):
                append(federation_id)

        seen: list[int] = []
        with ThreadPoolExecutor(WRITERS) as pool:
            running = [pool.submit(write_some) for _ in range(WRITERS)]
            while not all(future.done() for future in running):
                seen += numbers_after(federation_id, max(seen, default=0))
            for future in running:
                future.result()
        seen += numbers_after(federation_id, max(seen, default=0))
        assert len(seen) == WRITERS * EACH
        assert seen == numbers_after(federation_id, 0)

    @pytest.mark.engines
    def test_of_two_transactions_the_second_waits_with_its_number_for_the_first(self, federation_id: str) -> None:
        numbered, release = threading.Event(), threading.Event()

        def hold() -> None:
            numbered.set()
            assert release.wait(DEADLINE_SECONDS)

        def first() -> None:
            with writing() as session:
                events.append(session, federation_id, "federation.started")
                before_commit(session, hold, last=True)

        with ThreadPoolExecutor(2) as pool:
            running = [pool.submit(first)]
            assert numbered.wait(DEADLINE_SECONDS)
            running.append(pool.submit(append, federation_id))
            try:
                assert next(waiting_for_a_name()) == 1
                assert numbers_after(federation_id, 0) == []
            finally:
                release.set()
            for future in running:
                future.result(DEADLINE_SECONDS)
        assert len(numbers_after(federation_id, 0)) == 2

    @pytest.mark.engines
    def test_two_federations_do_not_wait_for_each_other(self, federation_id: str) -> None:
        with writing() as session:
            other = scene.federation(session, scene.organization(session, "Other").id).id
        with writing() as session:
            events.append(session, federation_id, "federation.started")
            before_commit(session, lambda: append(other))
        assert len(numbers_after(other, 0)) == len(numbers_after(federation_id, 0)) == 1


def webhook(session: Session, organization_id: str) -> str:
    made = Webhook(
        id=new_id("whk"), organization_id=organization_id, url="https://example.org", events=["*"], secret="s",
        created_at=utcnow(),
    )  # fmt: skip
    session.add(made)
    return made.id


def test_of_one_transaction_each_webhook_is_told_what_its_organization_may_read(data_folder: Path) -> None:
    with writing() as session:
        organizations = [scene.organization(session, name) for name in ("Bank", "Clinic", "Both", "Neither")]
        bank, clinic, both, neither = (one.id for one in organizations)
        first, second = (scene.federation(session, owner) for owner in (bank, clinic))
        for joined in (first, second):
            scene.member(session, joined, both)
        scene.member(session, first, neither, state="left")
        webhooks = {one: webhook(session, one) for one in (bank, clinic, both, neither)}
    with writing() as session:
        events.append(session, first.id, "federation.started")
        events.append(session, second.id, "federation.paused")
    with reading() as session:
        rows = session.execute(select(Delivery.webhook_id, Delivery.federation_id, Delivery.event)).all()
    started, paused = (first.id, "federation.started"), (second.id, "federation.paused")
    expected = [(bank, started), (clinic, paused), (both, started), (both, paused)]
    assert sorted(tuple(row) for row in rows) == sorted((webhooks[one], *what) for one, what in expected)


def waiting_for_a_name() -> Iterator[int]:
    """How many sessions wait for a lock by name, once there is one."""
    while True:
        with reading() as session:
            found = session.scalar(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
        if found:
            yield int(found)
