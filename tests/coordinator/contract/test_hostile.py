"""Hostile values in every place of an otherwise valid request, for every operation.

Each field of a body, each parameter of path and query and each header in turn holds a value that a text, a number or
a name should not have. The response must be one that the document declares, never a 5xx, and a rejection must be a
problem document. FEDLOOM_FUZZ_EXAMPLES sets the number of values for each place, the same in each run; 0 means all.
"""

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest

from coordinator.web.idempotency import HEADER
from tests.coordinator.contract.asking import DOCUMENT, JSON, OPERATIONS, Operation
from tests.coordinator.contract.hostile import good_body, judged, more_fields, signed
from tests.coordinator.contract.table import TRIED_ON, role_of
from tests.coordinator.contract.world import CHUNK
from tests.support.hostile_values import CLAIM_VALUES, CLAIMS, HEADERS, TEXTS, TOKENS, VALUES, places, with_text

if TYPE_CHECKING:
    from tests.coordinator.contract.world import World

EXAMPLES = int(os.environ.get("FEDLOOM_FUZZ_EXAMPLES", "2"))


def few(values: tuple[Any, ...], seed: str) -> Iterator[Any]:
    """Some of them, others for each place; all of them all over the document."""
    first = sum(seed.encode())
    yield from values if EXAMPLES == 0 else (values[(first + 7 * step) % len(values)] for step in range(EXAMPLES))


class Asker:
    """Asks good requests with one hostile value in them, and keeps what was answered wrongly."""

    def __init__(self, world: "World") -> None:
        self.world, self.asked, self.wrong = world, 0, list[str]()

    def ask(self, operation: Operation, about: str, path: str = "", body: str = "", **more: Any) -> None:
        ids = self.world.ids[TRIED_ON[operation.id]]
        anything = {"If-Match": "*"} if "if-match" in operation.names("header") else {}
        headers = {**self.world.authorization(role_of(operation)), **anything, **more.pop("headers", {})}
        if body:
            headers["Content-Type"] = JSON
        given = body.encode() or (CHUNK if operation.id == "put_chunk" else b"")
        url = self.world.service.url + (path or operation.path.format_map(ids)) + more.pop("query", "")
        self.asked += 1
        try:
            answer = self.world.service.anonymous.request(operation.method, url, headers=headers, content=given)
        except httpx.TransportError as error:
            self.wrong.append(f"{operation.id}: {about}: {error!r}")
            return
        fault = judged(operation, answer)
        if fault:
            self.wrong.append(f"{operation.id}: {about}: {fault}: {answer.status_code} {answer.text[:300]}")
        if answer.is_success and operation.method != "GET":
            self.world.restore()

    def found_nothing(self) -> None:
        assert self.asked > 20
        assert not self.wrong, f"{len(self.wrong)} of {self.asked}:\n" + "\n".join(self.wrong)


@pytest.fixture
def asker(world: "World") -> Asker:
    return Asker(world)


LONG = pytest.mark.timeout(0 if EXAMPLES != 2 else 300)


@LONG
def test_in_every_field_of_every_body(asker: Asker) -> None:
    for operation in OPERATIONS:
        good = good_body(asker.world, DOCUMENT, operation)
        if good is not None:
            for at in [*places(good), *more_fields(DOCUMENT, operation, good)]:
                for text in few(VALUES, f"{operation.id}{at}"):
                    asker.ask(operation, f"{at} = {text[:80]}", body=with_text(good, at, text))
    asker.found_nothing()


@LONG
def test_in_every_parameter_of_every_path(asker: Asker) -> None:
    for operation in OPERATIONS:
        ids = asker.world.ids[TRIED_ON[operation.id]]
        good = good_body(asker.world, DOCUMENT, operation)
        for name in operation.names("path"):
            for text in few(TEXTS, f"{operation.id}{name}"):
                if text and "%2f" not in text:  # another address
                    path = operation.path.format_map({**ids, name: quote(text, safe="%")})
                    asker.ask(operation, path, path=path, body="" if good is None else json.dumps(good))
    asker.found_nothing()


@LONG
def test_in_every_parameter_of_every_query(asker: Asker) -> None:
    for operation in OPERATIONS:
        good = good_body(asker.world, DOCUMENT, operation)
        names = {given["name"] for given in operation.said.get("parameters", []) if given["in"] == "query"}
        for name in sorted(names):
            for text in few(TEXTS, f"{operation.id}{name}"):
                if name != "wait" or text not in ("1e999", "+1", " 1", "1_0"):  # it would
                    body = "" if good is None else json.dumps(good)
                    asker.ask(operation, f"{name}={text[:80]}", query=f"?{name}={quote(text, safe='%')}", body=body)
    asker.found_nothing()


@LONG
def test_in_every_header_of_every_operation(asker: Asker) -> None:
    for operation in OPERATIONS:
        good = good_body(asker.world, DOCUMENT, operation)
        body = "" if good is None else json.dumps(good)
        for name in sorted(operation.names("header") | {"accept", "content-type"}):
            for value in few(HEADERS, f"{operation.id}{name}"):
                asker.ask(operation, f"{name}: {value[:80]!r}", body=body, headers={name: value})
        for value in few(TOKENS, operation.id):
            asker.ask(operation, f"authorization: {value[:80]!r}", body=body, headers={"authorization": value})
    asker.found_nothing()


@LONG
def test_in_every_body_together_with_a_key(asker: Asker) -> None:
    """What identifies a request is made of its body before anybody has looked at that."""
    for operation in OPERATIONS:
        good = good_body(asker.world, DOCUMENT, operation)
        if good is not None and operation.method == "POST":
            fields = ["token"] if operation.id == "enroll_worker" else []
            for at in [(), *((field,) for field in fields)]:
                for number, text in enumerate(few(VALUES, f"key {operation.id}{at}")):
                    key = {HEADER: f"{operation.id} {at} {number}"}
                    asker.ask(operation, f"key, {at} = {text[:80]}", body=with_text(good, at, text), headers=key)
    asker.found_nothing()


def test_in_the_claims_of_a_workers_token(asker: Asker) -> None:
    """The worker signs them itself: the signature holds."""
    operation = next(found for found in OPERATIONS if found.id == "send_heartbeat")
    worker = asker.world.service.new_worker(asker.world.home, "who signs anything")
    for claim in CLAIMS:
        for value in CLAIM_VALUES:
            token = signed(worker.identity, claim, value)
            asker.ask(operation, f"{claim} = {value!r}", headers={"authorization": f"Bearer {token}"}, body="{}")
    asker.found_nothing()
