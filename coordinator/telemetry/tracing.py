"""Optional OpenTelemetry traces of requests and of the tasks they wake.

OpenTelemetry's own variables enable and configure them: `OTEL_EXPORTER_OTLP_ENDPOINT`, or its variant for traces,
is the address of the collector (OTLP over HTTP). OpenTelemetry's specification lists the others. Without an endpoint
none of its packages is loaded. A task belongs to the trace of the request or task that woke it.
"""

import os
from typing import Any

import structlog
from celery.signals import task_prerun, worker_process_shutdown
from fastapi import FastAPI

from federated import __version__

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_EXCLUDED_URLS = "healthz,readyz,metrics"
_log = structlog.get_logger(__name__)


def start(process: str, app: FastAPI | None = None) -> None:
    """Starts tracing this process if an endpoint is set; logs a warning if the extra `tracing` is missing."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return
    try:
        _start(process, app)
    except ModuleNotFoundError as missing:
        _log.warning("traces_left_out", reason=f"{missing}; the extra `tracing` has it")


def _start(process: str, app: FastAPI | None) -> None:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.celery import CeleryInstrumentor
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    os.environ.setdefault("OTEL_SERVICE_NAME", "fedloom-coordinator")
    resource = Resource.create({"service.version": __version__, "fedloom.process": process})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()  # type: ignore[no-untyped-call]
    if app is not None:
        FastAPIInstrumentor.instrument_app(app, excluded_urls=_EXCLUDED_URLS, exclude_spans=["receive", "send"])

    def set_ids(args: Any = (), **_: object) -> None:
        trace.get_current_span().set_attribute("fedloom.ids", list(args))

    def flush(**_: object) -> None:
        provider.force_flush()

    task_prerun.connect(set_ids, weak=False)  # after the instrumentation's receiver, which starts the span
    worker_process_shutdown.connect(flush, weak=False)
