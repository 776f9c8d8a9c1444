"""Composition root of the web process: routers, errors, limits, health."""

import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import structlog
from anyio.to_thread import current_default_thread_limiter
from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from pydantic import Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator import api_docs, database, gauges, openapi, ownership, problems, readiness, response_headers
from coordinator.algorithms.endpoints import router as algorithms
from coordinator.artifacts.endpoints import router as artifacts
from coordinator.clients.endpoints import router as clients
from coordinator.errors import TooLarge, Unavailable
from coordinator.federations.endpoints import router as federations
from coordinator.jobs.endpoints import revocation
from coordinator.jobs.endpoints import router as jobs
from coordinator.models.base import new_id
from coordinator.organizations.endpoints import installation
from coordinator.organizations.endpoints import router as organizations
from coordinator.rounds.endpoints import router as rounds
from coordinator.settings import get_settings
from coordinator.webhooks.endpoints import router as webhooks
from coordinator.workers.endpoints import router as workers
from federated import __version__
from federated.protocol import PROTOCOL_VERSION, Answer

# Routes are looked through in this order: agents ask far more often than people.
ROUTERS = (
    workers,
    revocation,
    jobs,
    artifacts,
    organizations,
    installation,
    webhooks,
    algorithms,
    federations,
    clients,
    rounds,
)
DESCRIPTION = "Organisations fine-tune a language model together and never share their data."

REQUEST_ID = "X-Request-ID"
_SIMPLE_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = structlog.get_logger(__name__)
_requests = Counter("fedloom_http_requests_total", "Answered requests", ["method", "route", "status"])
_seconds = Histogram("fedloom_http_request_seconds", "Seconds until the whole answer was sent", ["method", "route"])

health = APIRouter(tags=["health"])


def create_app() -> FastAPI:
    """The ASGI app. Reads the settings when it serves, not when it is made."""
    app = Coordinator(
        title="Fedloom coordinator",
        version=__version__,
        description=DESCRIPTION,
        lifespan=_lifespan,
        separate_input_output_schemas=False,
        redirect_slashes=False,  # a redirect is told by the address under which a proxy asks, which may be nobody's
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # `tracing` and `/metrics` see to them
    )
    problems.install(app)
    for router in (*ROUTERS, health):
        app.router.routes.extend(router.routes)  # an included router finds each route twice
    app.router.routes.extend(api_docs.routes)
    app.add_middleware(Gate)
    return app


class Coordinator(FastAPI):
    """A FastAPI whose document says also what follows from it, and whose every answer has `response_headers`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Not a middleware: those stand inside of the one that answers unforeseen errors.
        await super().__call__(scope, receive, response_headers.completing(send))

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            openapi.complete(super().openapi())
        return super().openapi()


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    ownership.settle()
    current_default_thread_limiter().total_tokens = get_settings().web_threads
    yield
    database.dispose()


class Gate:
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
                await problems.answer(refusal)(scope, receive, sending)
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


class Alive(Answer):
    """The web process runs."""

    status: Literal["ok"] = "ok"


class Ready(Answer):
    """All parts are there. `checks`: part -> "ok"."""

    status: Literal["ready"] = "ready"
    checks: dict[str, str] = Field(examples=[{"database": "ok", "broker": "ok", "store": "ok"}])


class Version(Answer):
    """What runs here."""

    version: str = __version__
    protocol_version: int = PROTOCOL_VERSION


@health.get("/healthz", operation_id="healthz")
def healthz() -> Alive:
    """Say that the web process runs."""
    return Alive()


@health.get("/readyz", operation_id="readyz", response_model=Ready, responses={503: problems.documented(503)})
def readyz() -> Ready | Response:
    """Say whether database, migrations, store, broker, background and beat are there, and what is missing."""
    found = readiness.checks()
    missing = {name: outcome for name, outcome in found.items() if outcome != readiness.OK}
    if not missing:
        return Ready(checks=found)
    detail = "; ".join(f"{name}: {outcome}" for name, outcome in missing.items())
    problem = Unavailable("not_ready", f"Not ready. {detail}.").problem()
    return JSONResponse(
        {**problem, "missing": list(missing), "checks": found}, 503, Unavailable.headers, problems.MEDIA_TYPE
    )


@health.get("/version", operation_id="version")
def version() -> Version:
    """Show the versions of the service and of the protocol that workers speak."""
    return Version()


@health.get("/metrics", operation_id="metrics", response_class=PlainTextResponse)
def metrics() -> Response:
    """Show counters of this process and gauges of the installation in the text format of Prometheus."""
    return Response(generate_latest() + generate_latest(gauges.REGISTRY), media_type=CONTENT_TYPE_LATEST)
