"""The event stream of a federation (Server-Sent Events) over real HTTP."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from coordinator.db.sessions import writing
from coordinator.events import append
from coordinator.federations.service.queries import EVENTS_AT_ONCE
from tests.support.federation_rig import FederationRig
from tests.support.service import problem


@contextmanager
def streaming(
    rig: FederationRig, last_event_id: object = None, **query: object
) -> Iterator[Iterator[dict[str, str]]]:
    """The stream's events as field -> value; the test's timeout is the only end of waiting for the next."""
    headers = {"Accept": "text/event-stream"}
    if last_event_id is not None:
        headers["Last-Event-ID"] = str(last_event_id)
    asked = rig.owner.viewer.stream("GET", rig.path("events"), headers=headers, params=query)  # type: ignore[arg-type]
    with asked as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        yield events(answer)


def events(answer: httpx.Response) -> Iterator[dict[str, str]]:
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        name, colon, value = line.partition(": ")
        if name and colon:
            fields[name] = value
        elif not line and fields:
            yield fields
            fields = {}


def kinds(found: list[dict[str, str]]) -> list[str]:
    return [event["event"] for event in found]


def test_what_happened_and_what_happens_comes_in_order(rig: FederationRig) -> None:
    rig.create()
    with streaming(rig) as stream:
        first = next(stream)
        rig.post("start")
        second = next(stream)
        rig.post("pause")
        third = next(stream)
    found = [first, second, third]
    assert kinds(found) == ["federation.created", "federation.started", "federation.paused"]
    told: list[Any] = [json.loads(event["data"]) for event in found]
    assert [event["id"] for event in found] == [str(item["number"]) for item in told]
    assert told == rig.get("events")["items"]


def test_it_goes_on_after_the_last_event_that_was_seen(rig: FederationRig) -> None:
    rig.create()
    rig.post("start")
    with streaming(rig) as stream:
        seen = next(stream)
    with streaming(rig, last_event_id=seen["id"]) as stream:
        assert next(stream)["event"] == "federation.started"
    with streaming(rig, after=seen["id"]) as stream:
        assert next(stream)["event"] == "federation.started"
    rig.post("pause")
    last = rig.get("events")["items"][1]["number"]
    with streaming(rig, last_event_id=last, after=0) as stream:
        assert next(stream)["event"] == "federation.paused"


def test_more_than_a_page_comes_without_anything_new(rig: FederationRig) -> None:
    rig.create()
    with writing() as session:
        for _ in range(2 * EVENTS_AT_ONCE):
            append(session, rig.federation_id, "federation.changed", fields=[])
    with streaming(rig) as stream:
        found = [next(stream)["event"] for _ in range(2 * EVENTS_AT_ONCE + 1)]
    assert found == ["federation.created"] + ["federation.changed"] * 2 * EVENTS_AT_ONCE


def test_it_ends_when_the_federation_is_deleted(rig: FederationRig) -> None:
    rig.create()
    with streaming(rig) as stream:
        next(stream)
        assert rig.owner.owner.delete(rig.path()).status_code == 204
        assert list(stream) == []


def test_a_stranger_gets_none(rig: FederationRig) -> None:
    rig.create()
    stranger = rig.service.new_organization("stranger").owner
    answer = stranger.get(rig.path("events"), headers={"Accept": "text/event-stream"})
    problem(answer, 404, "federation_unknown")


@pytest.mark.parametrize("number", ["-1", "x", str(2**63)])
def test_a_number_that_no_event_has_is_refused(rig: FederationRig, number: str) -> None:
    rig.create()
    client = rig.owner.viewer
    refused = problem(client.get(rig.path("events"), params={"after": number}), 422, "request_invalid")
    assert refused["errors"][0]["pointer"] == "#query/after"
    problem(client.get(rig.path("events"), headers={"Last-Event-ID": number}), 422, "request_invalid")
