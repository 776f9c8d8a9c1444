"""Good requests that hostile values are put into, and what is wrong with an answer to one."""

import json
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from coordinator.db.sessions import utcnow
from tests.coordinator.contract.asking import JSON, Document, Operation, example
from tests.coordinator.contract.world import World
from tests.support.hostile_values import Place
from tests.support.service import Identity


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


def good_body(world: World, document: Document, operation: Operation) -> Any:
    """A body that would be taken."""
    told = example(operation, document)
    return None if told is None else json.loads(json.dumps({**told, **world.bodies.get(operation.id, {})}))


def more_fields(document: Document, operation: Operation, body: Mapping[str, Any]) -> Iterator[Place]:
    """Fields of the whole that the good body leaves out, and one that there is not."""
    schema = operation.said["requestBody"]["content"][JSON]["schema"]
    name = schema.get("$ref", "").rpartition("/")[2]
    known = document["components"]["schemas"].get(name, {}).get("properties", {})
    yield from ((field,) for field in [*known, "\ud800\x00"] if field not in body)


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
