"""Limits on the size of a request: its ids and headers, its body, and the number of values in the body.

An operation accepts `BODY_BYTES`, unless it declares another limit with `body_of_at_most`, or `LARGE_BODY` for the
setting `max_body_bytes`, which limits all the others too. A body may hold one value for every `BYTES_PER_VALUE` of
its limit. It is rejected before objects are built from a hundred thousand values.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Annotated, Any

from fastapi import Header, Path, Request

from coordinator.errors import FieldError, TooLarge
from coordinator.settings import get_settings
from coordinator.web import problem_details
from federated.bounds import MAX_SMALL

MAX_ID = 128
MAX_PATH_NAME = 256
MAX_HEADER = 8192
MAX_TAGS = 8192

PathId = Annotated[str, Path(max_length=MAX_ID)]
PathName = Annotated[str, Path(max_length=MAX_PATH_NAME)]
ChunkIndex = Annotated[int, Path(ge=0, le=MAX_SMALL)]
HeaderText = Annotated[str | None, Header(max_length=MAX_HEADER)]
TagsText = Annotated[str | None, Header(max_length=MAX_TAGS)]

BODY_BYTES = 16_384
BYTES_PER_VALUE = 8
MAX_ENTRIES = 1024
"""Entries of one JSON object."""
MAX_DEPTH = 32
_ESCAPES = (b"\\u", b"\xed")
"""A JSON text with a bad character contains one of these. Python also decodes a lone surrogate in UTF-8 form."""
_BAD_CHARACTER = re.compile("[\0\ud800-\udfff]")
_BAD_TEXT = "has a character that cannot be stored: NUL, or a lone surrogate"
_EXTENSION = "x-max-body-bytes"
_SETTING = "max_body_bytes"

LARGE_BODY: dict[str, Any] = {_EXTENSION: _SETTING}
"""For an operation's `openapi_extra`."""


def body_of_at_most(size_bytes: int) -> dict[str, Any]:
    """For an operation's `openapi_extra`: the maximum size of its body."""
    return {_EXTENSION: size_bytes}


def takes_bytes(extra: Mapping[str, Any]) -> bool:
    """Whether an operation with this `openapi_extra` reads its body itself, as bytes."""
    return "requestBody" in extra


def with_bound(extra: Mapping[str, Any]) -> dict[str, Any]:
    """This `openapi_extra` with the limit of the operation's body, unless that is bytes."""
    return dict(extra) if takes_bytes(extra) else {_EXTENSION: BODY_BYTES, **extra}


def bound_of(extra: Mapping[str, Any]) -> int:
    """The maximum body size of an operation with this `openapi_extra`, under the present settings."""
    size_bytes, largest = extra.get(_EXTENSION, BODY_BYTES), get_settings().max_body_bytes
    return largest if size_bytes == _SETTING else min(int(size_bytes), largest)


async def read_body(request: Request, limit: int) -> bytes:
    """The request's body. Raises TooLarge, without reading a body whose announced length is too large."""
    content_length = request.headers.get("Content-Length", "0")
    if int(content_length) > limit:
        raise _too_large(limit)
    body = await request.body()
    if len(body) > limit:
        raise _too_large(limit)
    return body


async def check_json(request: Request, body: bytes, limit: int) -> None:
    """Raises Unprocessable for a JSON body with too many values, or with texts that cannot be stored.

    Ignores a body that is not JSON; the code that reads it reports that.
    """
    most = max(1, limit // BYTES_PER_VALUE)
    if body.count(b",") > most:  # checked before parsing: a comma separates any two values
        raise problem_details.invalid([FieldError(pointer="", detail=f"the body holds more than {most} values")])
    try:
        value = await request.json()
    except (ValueError, RecursionError):
        return
    inspection = _Inspection(most, any(mark in body for mark in _ESCAPES))
    faults = list(islice(inspection.faults(value, ()), problem_details.MAX_FAULTS))
    if faults:
        raise problem_details.invalid(faults)


class _Inspection:
    """One pass over a JSON value before pydantic validates it."""

    def __init__(self, most: int, texts: bool) -> None:
        self._most, self._texts = most, texts
        self._values = 0

    def faults(self, value: object, path: tuple[int | str, ...]) -> Iterator[FieldError]:
        """Yields a fault for too many values, too deep nesting, and a text that cannot be stored."""
        if not isinstance(value, dict | list) or not value or self._values > self._most:
            return
        self._values += len(value)
        fault = self._size_fault(value, len(path))
        if fault is not None:
            yield FieldError(pointer=problem_details.pointer(path), detail=fault)
            return
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if self._texts and (_is_bad(key) or _is_bad(inner)):
                yield FieldError(pointer=problem_details.pointer((*path, key)), detail=_BAD_TEXT)
            elif isinstance(inner, dict | list):
                yield from self.faults(inner, (*path, key))

    def _size_fault(self, value: dict[str, Any] | list[Any], depth: int) -> str | None:
        if self._values > self._most:
            return f"with this the body holds more than {self._most} values"
        if isinstance(value, dict) and len(value) > MAX_ENTRIES:
            return f"has {len(value)} entries, at most {MAX_ENTRIES} are allowed"
        return f"is nested deeper than {MAX_DEPTH} levels" if depth >= MAX_DEPTH else None


def _is_bad(value: object) -> bool:
    return isinstance(value, str) and _BAD_CHARACTER.search(value) is not None


def _too_large(limit: int) -> TooLarge:
    return TooLarge("body_too_large", f"The body of this request has at most {limit} bytes.")
