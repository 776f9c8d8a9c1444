"""Good requests with hostile values in one or two of their places: path, query, headers, token, body."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st

from coordinator.web.idempotency import HEADER
from tests.coordinator.contract.asking import DOCUMENT, JSON, Operation
from tests.coordinator.contract.cases import is_number
from tests.coordinator.contract.hostile import good_body, more_fields, signed
from tests.coordinator.contract.table import TRIED_ON
from tests.coordinator.contract.world import CHUNK, World
from tests.fuzz.values import JSON_TEXTS, SCALARS
from tests.support.hostile_values import (
    CLAIM_VALUES,
    CLAIMS,
    HEADERS,
    TEXTS,
    TOKENS,
    VALUES,
    Place,
    places,
    with_text,
)
from tests.support.service import Identity

WAITS = "wait"
WAITS_IN_BODY: Place = ("wait_seconds",)
QUOTED = st.sampled_from(TEXTS) | st.text(min_size=1, max_size=40).map(lambda text: quote(text, safe=""))
HEADER_VALUES = st.sampled_from(HEADERS) | st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=60
).map(str.encode)


@dataclass
class Request:
    """What is sent. `query` and `path` are percent-encoded."""

    operation: Operation
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, bytes] = field(default_factory=dict)
    content: bytes = b""

    @property
    def target(self) -> str:
        """Path and query."""
        return self.path + (
            "?" + "&".join(f"{name}={text}" for name, text in self.query.items()) if self.query else ""
        )


@st.composite
def hostile_requests(draw: st.DrawFn, world: World, operation: Operation, role: str, signer: Identity) -> Request:
    """Of this role; some are signed by the `signer`, a worker, instead."""
    ids = dict(world.ids[TRIED_ON[operation.id]])
    body = good_body(world, DOCUMENT, operation)
    request = Request(operation, "", headers=_headers(world, operation, role, body))
    request.content = CHUNK if operation.id == "put_chunk" else b"" if body is None else json.dumps(body).encode()
    chosen = st.lists(st.sampled_from(list(_places(operation, body))), min_size=1, max_size=2, unique=True)
    for where, at in draw(chosen):
        match where:
            case "path":
                ids[at] = draw(QUOTED.filter(_is_segment))
            case "query":
                request.query[at] = draw(QUOTED if at != WAITS else QUOTED.filter(_does_not_wait))
            case "header":
                request.headers[at] = draw(HEADER_VALUES)
            case "token":
                request.headers["authorization"] = draw(_tokens(signer))
            case "bytes":
                request.content = draw(st.binary(max_size=200))
            case "body":
                texts = st.sampled_from(VALUES) if at == WAITS_IN_BODY else JSON_TEXTS
                request.content = with_text(body, at, draw(texts)).encode(errors="surrogatepass")
    request.path = operation.path.format_map(ids)
    return request


def _headers(world: World, operation: Operation, role: str, body: Any) -> dict[str, bytes]:
    headers = {name.lower(): text.encode() for name, text in world.authorization(role).items()}
    if "if-match" in operation.names("header"):
        headers["if-match"] = world.conditions.get(operation.id, "*").encode()
    if body is not None:
        headers["content-type"] = JSON.encode()
    return headers


def _places(operation: Operation, body: Any) -> Iterator[tuple[str, Any]]:
    yield from (("path", name) for name in sorted(operation.names("path")))
    yield from (("query", name) for name in sorted(operation.names("query")))
    names = operation.names("header") | {"accept", "content-type", "range", HEADER.lower()}
    yield from (("header", name) for name in sorted(names))
    yield "token", None
    if body is not None:
        yield "bytes", None
        yield from (("body", at) for at in [*places(body), *more_fields(DOCUMENT, operation, body)])


def _tokens(signer: Identity) -> st.SearchStrategy[bytes]:
    claims = st.builds(
        lambda claim, value: f"Bearer {signed(signer, claim, value)}".encode(),
        st.sampled_from(CLAIMS),
        st.sampled_from(CLAIM_VALUES) | SCALARS,
    )
    return st.sampled_from(TOKENS) | claims


def _is_segment(text: str) -> bool:
    """Whether it stays one part of a path; otherwise this is another address."""
    return bool(text) and "%2f" not in text.lower() and text not in (".", "..")


def _does_not_wait(text: str) -> bool:
    return not is_number(text.strip()) or not float(text) > 0
