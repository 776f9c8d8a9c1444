"""A request and its answer, whichever library carried them."""

import json
from base64 import b64encode
from dataclasses import dataclass
from typing import Any

import httpx
from schemathesis.core.transport import Response

Headers = tuple[tuple[str, str], ...]
MOST_BYTES = 20_000


@dataclass(frozen=True)
class Exchange:
    """`said_headers` and `said`: of the request."""

    method: str
    url: str
    said_headers: Headers
    said: bytes
    status: int
    headers: Headers
    content: bytes

    @property
    def changes(self) -> bool:
        """Whether something may have changed by it."""
        return self.status < 400 and self.method not in ("GET", "HEAD")

    def document(self) -> Any:
        """What the answer is as JSON by the letter, which knows neither NaN nor infinity. Raises ValueError."""
        return json.loads(self.content, parse_constant=_refuse)

    def is_json(self) -> bool:
        """Whether it says so of itself."""
        types = (value for name, value in self.headers if name.lower() == "content-type")
        return bool(self.content) and any("json" in value for value in types)

    def request_text(self) -> str:
        """All that was said."""
        return f"{self.method} {self.url} {self.said_headers} {self.said.decode('latin-1')}"

    def answer_text(self) -> str:
        """All that came."""
        return f"{self.status} {self.headers} {self.content.decode('latin-1')}"

    def shown(self) -> dict[str, Any]:
        """The request, so that it can be sent again; without its token, and its body as base64."""
        headers = {name: value for name, value in self.said_headers if name.lower() != "authorization"}
        body = b64encode(self.said[:MOST_BYTES]).decode()
        return {"method": self.method, "url": self.url, "headers": headers, "body": body}


def exchange(answer: httpx.Response | Response) -> Exchange:
    """What the answer is and was made of."""
    if isinstance(answer, httpx.Response):
        said, headers = answer.request.content, answer.headers.multi_items()
        said_headers = answer.request.headers.multi_items()
    else:
        body = answer.request.body or b""
        said = body if isinstance(body, bytes) else str(body).encode(errors="replace")
        headers = [(name, value) for name, values in answer.headers.items() for value in values]
        said_headers = [(_text(name), _text(value)) for name, value in answer.request.headers.items()]
    request = answer.request
    return Exchange(
        str(request.method), str(request.url), tuple(said_headers), said, answer.status_code, tuple(headers),
        answer.content,
    )  # fmt: skip


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _refuse(constant: str) -> None:
    raise ValueError(constant)
