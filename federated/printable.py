"""Text that came from elsewhere, made fit to be shown: one line of letters, which no terminal or renderer obeys.

Control, escape, format (bidirectional, zero-width) and private characters and halves of surrogate pairs become the
replacement character, line breaks and tabs a space. Markup of a renderer, such as rich's, is the renderer's to leave
alone.
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
    """One line of at most `limit` characters; what is cut off is told by `…`."""
    whole = str(text)
    line = whole if len(whole) <= limit else whole[: limit - 1] + "…"
    return line if line.isascii() and line.isprintable() else "".join(map(_visible, line))


def printable_lines(text: str) -> str:
    """Each line by itself and set in, so that a line of somebody else's in a traceback begins nothing new."""
    return "\n".join("  " + printable(line) for line in text.split("\n")[:MAX_LINES])


def printable_event(logger: object, method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """A structlog processor for lines that a person reads; tracebacks keep their lines."""
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
