"""The log of every process of the coordinator: structlog, as JSON unless a person looks on, and never a secret.

Our own lines do not pass through `logging`: with one for each request that was a large part of a request's cost.
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
    """A processor that blanks what looks like a key or a token, by its name or by its form."""
    for name, value in event.items():
        if name in _SECRET_NAMES:
            event[name] = "…"
        elif isinstance(value, str):
            event[name] = _SECRET.sub("…", value)
    return event


def add_trace_id(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor that names the trace in which this happens, where there is one."""
    if (trace := sys.modules.get("opentelemetry.trace")) is not None:
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            event["trace_id"] = trace.format_trace_id(context.trace_id)
    return event


class LineLogger:
    """What a logger writes with: no lock, for a process forked meanwhile would find it taken for ever."""

    stream: ClassVar[TextIO] = sys.stderr

    def __init__(self, name: str = "") -> None:
        self.name = name

    def write(self, line: str) -> None:
        """Writes it; a log that cannot be written stops nobody."""
        with suppress(OSError, ValueError):
            self.stream.write(line + "\n")
            self.stream.flush()

    debug = info = warning = error = critical = write


_as_json = json.JSONEncoder(default=repr).encode
_processors: list[Processor] = []  # one list for ever: loggers that are in use already keep it


def _rendered(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    return _as_json(event)


def configure(log_format: Literal["auto", "json", "console"], process: str) -> None:
    """Sends this process's log, and that of the libraries it uses, to standard error as it is now."""

    def naming(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["process"] = process  # a context variable would not reach threads that libraries start
        return event

    shared: list[Processor] = [
        naming,
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
        else [_rendered]
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
    _take_in_libraries(shared, last)


def _take_in_libraries(shared: list[Processor], last: list[Processor]) -> None:
    """What they say by `logging` becomes the same lines."""
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
