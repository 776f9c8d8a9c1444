"""Logging of the coordinator's processes: `federated.logs`, with the process's name, the trace and the libraries."""

import logging.config
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from structlog.typing import Processor

from federated.logs import LogFormat, for_terminal, renderers
from federated.logs import configure as configure_structlog


def add_trace_id(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Processor that adds the id of the current trace, where there is one."""
    if (trace := sys.modules.get("opentelemetry.trace")) is not None:
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            event["trace_id"] = trace.format_trace_id(context.trace_id)
    return event


def configure(log_format: LogFormat, process: str) -> None:
    """Send this process's log, and that of the libraries it uses, to standard error as it is now."""

    def add_process(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["process"] = process  # a context variable would not reach threads that libraries start
        return event

    first: list[Processor] = [
        add_process,
        add_trace_id,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    last = renderers(terminal=for_terminal(log_format))
    configure_structlog([*first, *last], sys.stderr)
    _configure_libraries(first, last)


def _configure_libraries(first: list[Processor], last: list[Processor]) -> None:
    """Turn what libraries send to `logging` into the same lines."""
    formatter = {
        "()": structlog.stdlib.ProcessorFormatter,
        "foreign_pre_chain": first,
        "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    }
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"structlog": formatter},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "structlog"}},
            "root": {"handlers": ["stderr"], "level": "INFO"},
            "loggers": {name: {"level": "WARNING"} for name in ("alembic", "celery", "httpx", "kombu", "uvicorn")},
        }
    )
