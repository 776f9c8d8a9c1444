"""Response headers of every answer, whoever gives it: the endpoint, a refusal, a stream, an error nobody foresaw."""

from starlette.types import Message, Send

POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""Content security policy of an answer that is no page: a browser that shows it loads and runs nothing."""
ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": POLICY,
}
_ALWAYS = [(name.encode(), value.encode()) for name, value in ALWAYS.items()]
_NOT_STORED = (b"cache-control", b"no-store")


def with_default_headers(send: Send) -> Send:
    """The same `send`, adding the headers of `ALWAYS` where the answer has no value of its own.

    An answer with neither `ETag` nor `Cache-Control` gets `Cache-Control: no-store`.
    """

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            _complete(message)
        await send(message)

    return sending


def _complete(start: Message) -> None:
    headers = list(start.get("headers", ()))
    present = {name.lower() for name, _ in headers}
    headers += [pair for pair in _ALWAYS if pair[0] not in present]
    if b"etag" not in present and b"cache-control" not in present:
        headers.append(_NOT_STORED)
    start["headers"] = headers
