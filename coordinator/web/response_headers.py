"""Default headers of every response: of endpoints, rejections, streams and unexpected errors alike."""

from starlette.types import Message, Send

POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""Content security policy of responses that are no pages: a browser that shows one loads and runs nothing."""
ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": POLICY,
}
_ALWAYS = [(name.encode(), value.encode()) for name, value in ALWAYS.items()]
_NO_STORE = (b"cache-control", b"no-store")


def with_default_headers(send: Send) -> Send:
    """`send`, with the headers of `ALWAYS` added where the response does not set them.

    A response with neither `ETag` nor `Cache-Control` gets `Cache-Control: no-store`.
    """

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            _complete(message)
        await send(message)

    return send_with_headers


def _complete(start: Message) -> None:
    headers = list(start.get("headers", ()))
    present = {name.lower() for name, _ in headers}
    headers += [pair for pair in _ALWAYS if pair[0] not in present]
    if b"etag" not in present and b"cache-control" not in present:
        headers.append(_NO_STORE)
    start["headers"] = headers
