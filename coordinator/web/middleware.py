"""ASGI middleware around every request: its id, the bound on its body, the path below a proxy, metrics, its log."""

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
_requests = Counter("fedloom_http_requests_total", "Answered requests", ["method", "route", "status"])
_seconds = Histogram("fedloom_http_request_seconds", "Seconds until the whole answer was sent", ["method", "route"])


class RequestMiddleware:
    """Before and after every request: names it, refuses a body over `max_body_bytes`, counts, writes the access log.

    The name is the caller's `X-Request-ID`, if that is a simple one; the answer has it, and every log line.

    Inside, paths are those of the API, whether a proxy takes the path of `public_url` away or not; the answer's
    `Location` and `Link` have it.

    A chunk of an upload may be larger; its exact size is checked where it is stored.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with structlog.contextvars.bound_contextvars(request_id=_name_of(scope)):
            await self._named(_below(get_settings().public_path, scope), receive, send)

    async def _named(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        status = 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = structlog.contextvars.get_contextvars()["request_id"]
                _lead_below(scope["root_path"], headers)
            await send(message)

        try:
            received = await _within_limit(scope, receive)
            if received is None:
                limit = get_settings().max_body_bytes
                refusal = TooLarge("body_too_large", f"The body of a request has at most {limit} bytes.")
                await problem_details.response_for(refusal)(scope, receive, sending)
            else:
                await self._app(scope, received, sending)
        finally:
            _account(scope, status, time.perf_counter() - started)


def _name_of(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID, "")
    return given if _SIMPLE_NAME.fullmatch(given) else new_id("req")


def _below(prefix: str, scope: Scope) -> Scope:
    """The scope of a request to an app that is served below `prefix`, its path without that."""
    path: str = scope["path"]
    return {
        **scope,
        "root_path": prefix,
        "path": path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path,
    }


def _lead_below(prefix: str, headers: MutableHeaders) -> None:
    """Puts `prefix` before the paths that the headers tell, as who follows them needs it."""
    for name, start in (("Location", "/"), ("Link", "</")) if prefix else ():
        if headers.get(name, "").startswith(start):
            headers[name] = start[:-1] + prefix + headers[name].removeprefix(start[:-1])


async def _within_limit(scope: Scope, receive: Receive) -> Receive | None:
    """A `receive` with no more than the limit to come, or None if there is more."""
    headers = dict(scope["headers"])
    limit = get_settings().max_body_bytes
    if scope["method"] == "PUT" and "/chunks/" in scope["path"]:
        return receive
    if b"transfer-encoding" not in headers:  # then the server holds the body to its announced length
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
    about = {name: value for name, value in scope.get("path_params", {}).items() if name.endswith("_id")}
    took = round(1000 * seconds, 1)
    _log.info("request", method=scope["method"], path=scope["path"], status=status, milliseconds=took, **about)
