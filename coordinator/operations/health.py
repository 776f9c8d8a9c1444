"""Health endpoints: liveness, readiness, versions and Prometheus metrics."""

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import Field

from coordinator.errors import Unavailable
from coordinator.operations import gauges, readiness
from coordinator.web import problem_details
from federated import __version__
from federated.protocol import PROTOCOL_VERSION, ProtocolResponse

router = APIRouter(tags=["health"])


class Alive(ProtocolResponse):
    """The web process runs."""

    status: Literal["ok"] = "ok"


class Ready(ProtocolResponse):
    """All parts are available. `checks`: part -> "ok"."""

    status: Literal["ready"] = "ready"
    checks: dict[str, str] = Field(examples=[{"database": "ok", "broker": "ok", "store": "ok"}])


class Version(ProtocolResponse):
    """Versions of the service and of the protocol."""

    version: str = __version__
    protocol_version: int = PROTOCOL_VERSION


@router.get("/healthz", operation_id="healthz")
def healthz() -> Alive:
    """Report that the web process runs."""
    return Alive()


@router.get(
    "/readyz", operation_id="readyz", response_model=Ready, responses={503: problem_details.problem_response(503)}
)
def readyz() -> Ready | Response:
    """Report whether database, migrations, store, broker, background and beat are available, and what is missing."""
    outcomes = readiness.checks()
    missing = {name: outcome for name, outcome in outcomes.items() if outcome != readiness.OK}
    if not missing:
        return Ready(checks=outcomes)
    detail = "; ".join(f"{name}: {outcome}" for name, outcome in missing.items())
    problem = Unavailable("not_ready", f"Not ready. {detail}.").problem()
    document = {**problem, "missing": list(missing), "checks": outcomes}
    return JSONResponse(document, 503, Unavailable.headers, problem_details.MEDIA_TYPE)


@router.get("/version", operation_id="version")
def version() -> Version:
    """Show the versions of the service and of the protocol that workers speak."""
    return Version()


@router.get("/metrics", operation_id="metrics", response_class=PlainTextResponse)
def metrics() -> Response:
    """Show counters of this process and gauges of the installation in Prometheus's text format."""
    return Response(generate_latest() + generate_latest(gauges.REGISTRY), media_type=CONTENT_TYPE_LATEST)
