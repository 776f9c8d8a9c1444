"""A real background process whose webhooks have an unresponsive receiver: nothing else is delayed."""

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from coordinator.db.sessions import reading, utcnow
from coordinator.operations.heartbeats import stale_roles
from coordinator.settings import get_settings
from tests.support.federation_rig import FederationRig, definition
from tests.support.receiver import Message, Receiver, receiving
from tests.support.service import Organization, created

START_SECONDS = 60.0
PROMPT_SECONDS = 2.0
WEBHOOKS = 10
EVENTS = 3

Value = TypeVar("Value")


@pytest.fixture(autouse=True)
def settings(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Receivers on this machine are allowed, and one that does not answer is waited for all along."""
    monkeypatch.setenv("FEDLOOM_WEBHOOK_PRIVATE_ADDRESSES", "true")
    monkeypatch.setenv("FEDLOOM_WEBHOOK_TIMEOUT_SECONDS", str(START_SECONDS))
    get_settings.cache_clear()


def within(seconds: float, look: Callable[[], Value | None]) -> Value:
    """The first value of `look` that is not empty; it must come in time."""
    deadline = time.monotonic() + seconds
    while not (value := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
    return value


@contextmanager
def background(log: Path) -> Iterator[None]:
    """A background process over this test's place, which ends well when it is told to."""
    with log.open("wb") as written:
        command = [sys.executable, "-m", "coordinator", "work"]
        process = subprocess.Popen(command, stdout=written, stderr=written)
    try:
        within(START_SECONDS, _heard)
        yield
        process.terminate()
        assert process.wait(START_SECONDS) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def _heard() -> bool:
    with reading() as session:
        return "background" not in stale_roles(session, utcnow())


def hook(organization: Organization, url: str) -> None:
    path = f"/v1/organizations/{organization.id}/webhooks"
    created(organization.owner.post(path, json={"url": url, "events": ["federation.created"]}))


def create_federation(organization: Organization) -> None:
    created(organization.owner.post("/v1/federations", json=definition()))


def by_path(messages: list[Message]) -> dict[str, list[int]]:
    """Numbers of the events as they came to each webhook."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for message in messages:
        numbers[message.path].append(json.loads(message.body)["number"])
    return numbers


def hang(organization: Organization, receiver: Receiver) -> None:
    """The organization has ten webhooks with messages that do not arrive."""
    receiver.hangs = True
    for number in range(WEBHOOKS):
        hook(organization, f"{receiver.url}/{number}")
    for _ in range(EVENTS):
        create_federation(organization)
    within(START_SECONDS, lambda: receiver.messages)


def test_receivers_that_do_not_answer_delay_no_other_organization(rig: FederationRig, tmp_path: Path) -> None:
    slow, other = rig.service.new_organization("Slow"), rig.service.new_organization("Other")
    processes = 1 if get_settings().embedded else get_settings().background_threads
    with receiving() as hanging, receiving() as prompt, background(tmp_path / "log"):
        hook(other, prompt.url)
        hang(slow, hanging)
        rig.create()
        actors = [rig.join(rig.actor()) for _ in range(2)]
        rig.owner.owner.post(rig.path("start")).raise_for_status()
        assert within(PROMPT_SECONDS, actors[0].lease)["kind"] == "describe"
        create_federation(other)
        within(PROMPT_SECONDS, lambda: prompt.messages)
        assert len(hanging.messages) <= processes
        hanging.hanging.set()
        within(START_SECONDS, lambda: len(hanging.messages) >= WEBHOOKS * EVENTS)
    events = by_path(hanging.messages)
    assert set(events) == {f"/{number}" for number in range(WEBHOOKS)}
    for numbers in events.values():
        assert len(numbers) == EVENTS
        assert numbers == sorted(set(numbers))
