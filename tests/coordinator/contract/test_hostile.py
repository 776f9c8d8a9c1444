"""What nobody means well by: hostile values in every place of every request that is good but for them.

Each field of a body, each parameter of path and query and each header in its turn holds what a text, a number or a
name should not be. Whatever is made of it, the answer is one that the document knows, and no 5xx; a refusal is a
problem. FEDLOOM_FUZZ_EXAMPLES says how many of them there are of each place (they are the same in each run); 0: all.
"""

import json
import os
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest

from coordinator.app import create_app
from coordinator.database import utcnow
from coordinator.idempotency import HEADER
from tests.coordinator.contract.asking import JSON, Operation, example, operations
from tests.coordinator.contract.table import ANSWERED, TRIED_ON
from tests.coordinator.contract.world import CHUNK, ROLES
from tests.support.service import Identity

if TYPE_CHECKING:
    from tests.coordinator.contract.world import World

EXAMPLES = int(os.environ.get("FEDLOOM_FUZZ_EXAMPLES", "2"))
DOCUMENT = create_app().openapi()
OPERATIONS = operations(DOCUMENT)
DIGITS = "9" * 5000
VALUES = (
    '"a\\u0000b"', '"\\ud800"', '"\\udc00\\ud800"', '""', f'"{"x" * 70_000}"', '"\\u202e\\uffff\\ud83d\\ude00"',
    '"../../../etc/passwd"', "null", "true", "0", "-1", str(2**31), str(2**63), str(2**64), "9" * 400, DIGITS,
    "1e999", "-1e999", "NaN", "-Infinity", "5e-324", "1e308", "0.1", "[]", "{}", "[" * 90 + "]" * 90,
    '{"\\ud800": "\\u0000"}', '{"": {"\\u0000": 1e999}}', '[null, "\\ud800", 1e999, ' + "9" * 400 + "]",
)  # fmt: skip
"""JSON texts; not all of them are JSON by the letter, and Python reads them all."""
TEXTS = (
    "", "%00", "a%00b", "%ff%fe", "%ed%a0%80", "%F0%9F%98%80", "%2e%2e%2f", "-1", "0", "1e999", "nan", str(2**31),
    str(2**63), str(2**64), "9" * 400, DIGITS, "x" * 5000, "%C2%B2", "%D9%A3", "+1", " 1", "1_0", "%0d%0aX: y",
)  # fmt: skip
"""Percent-encoded texts for paths and queries."""
HEADERS = (
    b"", b"\xff\xfe", b"\xed\xa0\x80", b'"', b'W/"', b",", b'*, "*"', b"bytes=-", b"bytes=0-" + DIGITS.encode(),
    b"bytes=" + DIGITS.encode() + b"-", b"bytes=-" + DIGITS.encode(), b"bytes=5-2", b"bytes=\xb2-", b"-1", b"1e999",
    DIGITS.encode(), str(2**63).encode(), b"x" * 9000, b"a\tb", b'"\xe4"', b"=?utf-8?q?=00?=",
)  # fmt: skip
TOKENS = (
    b"Bearer", b"Basic \xff", b"Bearer \xff\xfe", b"Bearer flk_", b"Bearer flk__", b"Bearer flk_\xff_x",
    b"Bearer a.b.c", b"Bearer ..", b"Bearer e30.e30.", b"Bearer " + b"W1tb" * 4000 + b".e30.x",
    b"Bearer bnVsbA.e30.x", b"Bearer " + b"x" * 9000,
)  # fmt: skip


def few(values: tuple[Any, ...], seed: str) -> Iterator[Any]:
    """Some of them, others for each place; all of them all over the document."""
    first = sum(seed.encode())
    yield from values if EXAMPLES == 0 else (values[(first + 7 * step) % len(values)] for step in range(EXAMPLES))


def role_of(operation: Operation) -> str:
    """Who may do this; nobody in particular, if all may."""
    if not operation.said["security"]:
        return "anonymous"
    return next(role for role in ("owner", "worker", *ROLES) if ANSWERED[operation.id][role] == "ok")


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


def judged(operation: Operation, answer: httpx.Response) -> str:
    """What is wrong with the answer, or nothing."""
    if answer.status_code >= 500:
        return "a failure of the coordinator"
    if str(answer.status_code) not in operation.said["responses"]:
        return "not one of the document's"
    if answer.status_code < 400:
        return ""
    if answer.headers["content-type"] != "application/problem+json":
        return "not a problem"
    told = answer.json()
    if told["code"] == "request_invalid" and not told["errors"]:
        return "does not name what is invalid"
    return ""


def good_body(world: "World", operation: Operation) -> Any:
    """A body that would be taken."""
    told = example(operation, DOCUMENT)
    return None if told is None else json.loads(json.dumps({**told, **world.bodies.get(operation.id, {})}))


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, the whole first."""
    yield at
    for key, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from places(inner, (*at, key))


def with_text(value: Any, at: tuple[Any, ...], text: str) -> str:
    """The JSON text of a value with this text at one of its places."""
    mark = "put-the-hostile-value-here"
    return json.dumps(_marked(value, at, mark)).replace(f'"{mark}"', text)


def _marked(value: Any, at: tuple[Any, ...], mark: str) -> Any:
    if not at:
        return mark
    if isinstance(value, list):
        return [_marked(inner, at[1:], mark) if index == at[0] else inner for index, inner in enumerate(value)]
    return {**value, at[0]: _marked(value.get(at[0]), at[1:], mark)}


def more_fields(operation: Operation, body: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Fields of the whole that the good body leaves out, and one that there is not."""
    schema = operation.said["requestBody"]["content"][JSON]["schema"]
    name = schema.get("$ref", "").rpartition("/")[2]
    known = DOCUMENT["components"]["schemas"].get(name, {}).get("properties", {})
    yield from ((field,) for field in [*known, "\ud800\x00"] if field not in body)


@pytest.fixture
def asker(world: "World") -> Asker:
    return Asker(world)


LONG = pytest.mark.timeout(0 if EXAMPLES != 2 else 300)


@LONG
def test_in_every_field_of_every_body(asker: Asker) -> None:
    for operation in OPERATIONS:
        good = good_body(asker.world, operation)
        if good is not None:
            for at in [*places(good), *more_fields(operation, good)]:
                for text in few(VALUES, f"{operation.id}{at}"):
                    asker.ask(operation, f"{at} = {text[:80]}", body=with_text(good, at, text))
    asker.found_nothing()


@LONG
def test_in_every_parameter_of_every_path(asker: Asker) -> None:
    for operation in OPERATIONS:
        ids = asker.world.ids[TRIED_ON[operation.id]]
        good = good_body(asker.world, operation)
        for name in operation.names("path"):
            for text in few(TEXTS, f"{operation.id}{name}"):
                if text and "%2f" not in text:  # another address
                    path = operation.path.format_map({**ids, name: quote(text, safe="%")})
                    asker.ask(operation, path, path=path, body="" if good is None else json.dumps(good))
    asker.found_nothing()


@LONG
def test_in_every_parameter_of_every_query(asker: Asker) -> None:
    for operation in OPERATIONS:
        good = good_body(asker.world, operation)
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
        good = good_body(asker.world, operation)
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
        good = good_body(asker.world, operation)
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
    for claim in ("iss", "aud", "iat", "exp", "nbf", "jti", "sub", "kid"):
        for value in (0, -1, 2**70, 1e300, float("inf"), float("nan"), "1", "x", "\x00", [], {}, True, [["x"]], ""):
            token = signed(worker.identity, claim, value)
            asker.ask(operation, f"{claim} = {value!r}", headers={"authorization": f"Bearer {token}"}, body="{}")
    asker.found_nothing()


def signed(identity: Identity, claim: str, value: Any) -> str:
    """A worker's token with this value of a claim, or of its header's `kid`."""
    now = int(utcnow().timestamp())
    header: dict[str, Any] = {"alg": "EdDSA", "kid": identity.worker_id}
    claims: dict[str, Any] = {"iss": identity.worker_id, "aud": "fedloom", "iat": now, "exp": now + 60, "jti": "1"}
    (header if claim == "kid" else claims)[claim] = value
    message = ".".join(encoded(json.dumps(part).encode()) for part in (header, claims))
    return f"{message}.{identity.sign(message.encode())}"


def encoded(raw: bytes) -> str:
    """base64url without padding."""
    return urlsafe_b64encode(raw).decode().rstrip("=")
