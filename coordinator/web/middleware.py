"""ASGI middleware around every request: request id, body limit, path prefix of a proxy, metrics, access log."""

import re
import time

import structlog
from fastapi.routing import APIRoute
from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.errors import TooLarge
from coordinator.models.base import new_id
from coordinator.settings import get_settings
from coordinator.web import problem_details

REQUEST_ID = "X-Request-ID"
_SIMPLE_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = structlog.get_logger(__name__)
_requests = Counter("fedloom_http_requests_total", "HTTP requests", ["method", "route", "status"])
_seconds = Histogram("fedloom_http_request_seconds", "Seconds until the whole response was sent", ["method", "route"])


class RequestMiddleware:
    """Sets the request id, rejects a body over `max_body_bytes`, counts the request and writes the access log.

    The id is the caller's `X-Request-ID` if it is a simple one. The response and every log line contain it.

    The app sees the paths of the API, whether a proxy strips the path of `public_url` or not. `Location` and `Link`
    of the response get that path as a prefix.

    A chunk of an upload may be larger; its exact size is checked where it is stored.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with structlog.contextvars.bound_contextvars(request_id=_request_id(scope)):
            await self._handle(_strip_prefix(get_settings().public_path, scope), receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        start_seconds = time.perf_counter()
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = structlog.contextvars.get_contextvars()["request_id"]
                _add_prefix(scope["root_path"], headers)
            await send(message)

        try:
            receive_body = await _within_limit(scope, receive)
            if receive_body is None:
                limit = get_settings().max_body_bytes
                refusal = TooLarge("body_too_large", f"The body of a request has at most {limit} bytes.")
                await problem_details.response_for(refusal)(scope, receive, send_with_headers)
            else:
                await self._app(scope, receive_body, send_with_headers)
        finally:
            _account(scope, status, time.perf_counter() - start_seconds)


def _request_id(scope: Scope) -> str:
    text = Headers(scope=scope).get(REQUEST_ID, "")
    return text if _SIMPLE_NAME.fullmatch(text) else new_id("req")


def _strip_prefix(prefix: str, scope: Scope) -> Scope:
    """The scope of a request to an app served below `prefix`, with the prefix removed from its path."""
    path: str = scope["path"]
    return {
        **scope,
        "root_path": prefix,
        "path": path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path,
    }


def _add_prefix(prefix: str, headers: MutableHeaders) -> None:
    """Adds `prefix` to the paths in `Location` and `Link`."""
    for name, start in (("Location", "/"), ("Link", "</")) if prefix else ():
        if headers.get(name, "").startswith(start):
            headers[name] = start[:-1] + prefix + headers[name].removeprefix(start[:-1])


async def _within_limit(scope: Scope, receive: Receive) -> Receive | None:
    """A `receive` for a body within the limit, or None if the body is too large."""
    headers = dict(scope["headers"])
    limit = get_settings().max_body_bytes
    if scope["method"] == "PUT" and "/chunks/" in scope["path"]:
        return receive
    if b"transfer-encoding" not in headers:  # then the server enforces the announced length
        return receive if int(headers.get(b"content-length", b"0")) <= limit else None
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return receive
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:
            return None
    return _replaying({"type": "http.request", "body": bytes(body), "more_body": False}, receive)


def _replaying(first: Message, receive: Receive) -> Receive:
    waiting = [first]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _account(scope: Scope, status: int, seconds: float) -> None:
    route = scope.get("route")
    path = route.path_format if isinstance(route, APIRoute) else "other"
    _requests.labels(scope["method"], path, str(status)).inc()
    _seconds.labels(scope["method"], path).observe(seconds)
    ids = {name: value for name, value in scope.get("path_params", {}).items() if name.endswith("_id")}
    milliseconds = round(1000 * seconds, 1)
    _log.info("request", method=scope["method"], path=scope["path"], status=status, milliseconds=milliseconds, **ids)
