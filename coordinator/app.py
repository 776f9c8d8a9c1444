"""Composition root of the web process: routers, errors, middleware."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from coordinator import ownership
from coordinator.algorithms.endpoints import router as algorithms
from coordinator.artifacts.endpoints import router as artifacts
from coordinator.clients.endpoints import router as clients
from coordinator.db import sessions
from coordinator.federations.endpoints import router as federations
from coordinator.jobs.endpoints import revocation
from coordinator.jobs.endpoints import router as jobs
from coordinator.operations.health import router as health
from coordinator.organizations.endpoints import installation
from coordinator.organizations.endpoints import router as organizations
from coordinator.rounds.endpoints import router as rounds
from coordinator.settings import get_settings
from coordinator.web import api_docs, openapi, problem_details, response_headers
from coordinator.web.middleware import RequestMiddleware
from coordinator.webhooks.endpoints import router as webhooks
from coordinator.workers.endpoints import router as workers
from federated import __version__

# Routes are matched in this order: agents send far more requests than people.
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
DESCRIPTION = "Organizations fine-tune a language model together and never share their data."


def create_app() -> FastAPI:
    """The ASGI app. It reads the settings when it serves, not when it is created."""
    app = Coordinator(
        title="Fedloom coordinator",
        version=__version__,
        description=DESCRIPTION,
        lifespan=_lifespan,
        separate_input_output_schemas=False,
        redirect_slashes=False,  # a redirect would contain the address that a proxy uses, which may not be public
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # see `tracing` and `/metrics`
    )
    problem_details.install(app)
    for router in (*ROUTERS, health):
        app.router.routes.extend(router.routes)  # include_router would match each route twice
    app.router.routes.extend(api_docs.routes)
    app.add_middleware(RequestMiddleware)
    return app


class Coordinator(FastAPI):
    """A FastAPI with a completed OpenAPI document (`openapi`) and `response_headers` on every response."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Not a middleware: those run inside the one that handles unexpected errors.
        await super().__call__(scope, receive, response_headers.with_default_headers(send))

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            openapi.complete(super().openapi())
        return super().openapi()


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    ownership.secure_files()
    current_default_thread_limiter().total_tokens = get_settings().web_threads
    yield
    sessions.dispose()
