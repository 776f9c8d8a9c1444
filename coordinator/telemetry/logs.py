"""Logging of all coordinator processes: structlog, as JSON or for a terminal, with secrets redacted.

The coordinator's own lines bypass `logging`, which took a large part of the cost of a request.
"""

import json
import logging
import logging.config
import re
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, ClassVar, Literal, TextIO

import structlog
from structlog.typing import Processor

from federated.printable import printable_event

_SECRET = re.compile(r"\bfl[kew]_\w{20,}|\beyJ[\w-]{10,}\.[\w-]+\.[\w-]+")
_SECRET_NAMES = frozenset({"authorization", "key", "token", "secret", "password"})


def redact_secrets(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Processor that redacts keys and tokens, recognized by field name or by form."""
    for name, value in event.items():
        if name in _SECRET_NAMES:
            event[name] = "…"
        elif isinstance(value, str):
            event[name] = _SECRET.sub("…", value)
    return event


def add_trace_id(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Processor that adds the id of the current trace, if there is one."""
    if (trace := sys.modules.get("opentelemetry.trace")) is not None:
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            event["trace_id"] = trace.format_trace_id(context.trace_id)
    return event


class LineLogger:
    """Writer behind every logger. It takes no lock, which a process forked meanwhile would inherit locked."""

    stream: ClassVar[TextIO] = sys.stderr

    def __init__(self, name: str = "") -> None:
        self.name = name

    def write(self, line: str) -> None:
        """Writes the line; errors of writing are ignored."""
        with suppress(OSError, ValueError):
            self.stream.write(line + "\n")
            self.stream.flush()

    debug = info = warning = error = critical = write


_as_json = json.JSONEncoder(default=repr).encode
_processors: list[Processor] = []  # always the same list: loggers in use hold a reference to it


def _render_json(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    return _as_json(event)


def configure(log_format: Literal["auto", "json", "console"], process: str) -> None:
    """Sends the log of this process and of its libraries to the present standard error."""

    def add_process(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["process"] = process  # a context variable would not reach threads that libraries start
        return event

    shared: list[Processor] = [
        add_process,
        add_trace_id,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    last: list[Processor] = (
        [printable_event, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [_render_json]
    )
    last = [structlog.processors.format_exc_info, redact_secrets, *last]
    LineLogger.stream = sys.stderr
    _processors[:] = [*shared, *last]
    structlog.configure(
        processors=_processors,
        logger_factory=LineLogger,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    _configure_libraries(shared, last)


def _configure_libraries(shared: list[Processor], last: list[Processor]) -> None:
    """Formats the lines that libraries send to `logging` the same way."""
    formatter = {
        "()": structlog.stdlib.ProcessorFormatter,
        "foreign_pre_chain": shared,
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
