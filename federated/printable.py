"""Sanitizer for untrusted text that is printed or logged: one line without control characters.

Control, escape, format (bidirectional, zero-width), private-use and surrogate characters become the replacement
character. Line breaks and tabs become a space. Escaping a renderer's markup, such as rich's, is the caller's task.
"""

import unicodedata
from collections.abc import Mapping, MutableMapping
from typing import Any

MAX_CHARACTERS = 2000
MAX_LINES = 400
_REPLACEMENT = "\ufffd"
_BREAKS = frozenset("\t\n\v\f\r\x85\u2028\u2029")
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_WITH_LINES = frozenset({"exception", "stack"})


def printable(text: object, limit: int = MAX_CHARACTERS) -> str:
    """One line of at most `limit` characters. A text that is cut ends with `…`."""
    full = str(text)
    line = full if len(full) <= limit else full[: limit - 1] + "…"
    return line if line.isascii() and line.isprintable() else "".join(map(_visible, line))


def printable_lines(text: str) -> str:
    """Each line sanitized and indented, so that untrusted text in a traceback cannot imitate a new log line."""
    return "\n".join("  " + printable(line) for line in text.split("\n")[:MAX_LINES])


def printable_event(logger: object, method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """A structlog processor for human-readable output. Tracebacks keep their lines."""
    for name, value in event.items():
        if name in _WITH_LINES and isinstance(value, str):
            event[name] = printable_lines(value)
        elif not isinstance(value, bool | int | float | None):
            event[name] = printable(value if isinstance(value, str) else repr(value))
    return event


def _visible(character: str) -> str:
    if character in _BREAKS:
        return " "
    return _REPLACEMENT if unicodedata.category(character) in _INVISIBLE else character
