"""Response headers of every answer, whoever gives it: the endpoint, a refusal, a stream, an error nobody foresaw."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

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


class ResponseHeaders:
    """Middleware that adds the headers of `ALWAYS` where the answer has no value of its own.

    An answer with neither `ETag` nor `Cache-Control` gets `Cache-Control: no-store`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                _complete(message)
            await send(message)

        await self._app(scope, receive, sending)


def _complete(start: Message) -> None:
    headers = list(start.get("headers", ()))
    present = {name.lower() for name, _ in headers}
    headers += [pair for pair in _ALWAYS if pair[0] not in present]
    if b"etag" not in present and b"cache-control" not in present:
        headers.append(_NOT_STORED)
    start["headers"] = headers
