"""Logging of both processes: structlog writes lines to standard error, as JSON or for a terminal, without secrets.

The lines do not pass through `logging`: with one line for each request, that was a large part of a request's cost.
"""

import json
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Literal, TextIO, TypeAlias

import structlog
from structlog.typing import Processor

from federated.printable import printable_event

LogFormat: TypeAlias = Literal["auto", "json", "console"]

_MASK = "…"
_SECRET = re.compile(r"\bfl[kew]_\w{20,}|\beyJ[\w-]{10,}\.[\w-]+\.[\w-]+")
_SECRET_NAMES = frozenset({"authorization", "key", "token", "secret", "password"})


def redact_secrets(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Processor that masks what looks like a key or a token, by its name or by its form, at any depth."""
    for name, value in event.items():
        event[name] = _MASK if name in _SECRET_NAMES else _redact(value)
    return event


def _redact(value: Any) -> Any:
    if isinstance(value, str):
        return _SECRET.sub(_MASK, value)
    if isinstance(value, Mapping):
        return {name: _MASK if name in _SECRET_NAMES else _redact(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        parts = map(_redact, value)
        return tuple(parts) if isinstance(value, tuple) else list(parts)
    return value


class LineLogger:
    """Logger that writes without a lock: a process forked while a thread holds a lock would wait for it for ever."""

    stream: ClassVar[TextIO | None] = None
    """None: `sys.stderr` at the moment of writing, which progress bars replace."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def write(self, line: str) -> None:
        """Write one line. An error of the stream is ignored, so that a full disk stops no work."""
        with suppress(OSError, ValueError):
            stream = self.stream or sys.stderr
            stream.write(line + "\n")
            stream.flush()

    debug = info = warning = error = critical = write


_to_json = json.JSONEncoder(default=repr).encode
_processors: list[Processor] = []  # the same list for ever: loggers that are in use keep a reference to it


def _render_json(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    return _to_json(event)


def for_terminal(log_format: LogFormat) -> bool:
    """Whether lines are for a person: by the setting, or with `auto` if standard error is a terminal."""
    return log_format == "console" or (log_format == "auto" and sys.stderr.isatty())


def renderers(
    *, terminal: bool, json_exceptions: Processor = structlog.processors.format_exc_info
) -> list[Processor]:
    """The last processors of a line: its exception, the filter for secrets, and the text itself."""
    if terminal:
        console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        return [structlog.processors.format_exc_info, redact_secrets, printable_event, console]
    return [json_exceptions, redact_secrets, _render_json]


def configure(processors: Sequence[Processor], stream: TextIO | None = None) -> None:
    """Send this process's log through `processors` to `stream`, from level INFO on; loggers in use follow."""
    LineLogger.stream = stream
    _processors[:] = processors
    structlog.configure(
        processors=_processors,
        logger_factory=LineLogger,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
