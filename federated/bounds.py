"""Bounds of what comes over the wire where no field has its own: sizes, counts, names, and values of free form.

They are wider than anything meant well, and narrow enough that no message costs more than it is worth.
"""

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, FiniteFloat, WithJsonSchema

MAX_LARGE = 2**53 - 1
"""Larger whole numbers are not the same in every JSON reader."""
MAX_SMALL = 2**31 - 1
MAX_NORM = 1e30
MAX_SECONDS = 1e10

MAX_FREE_DEPTH = 4
MAX_FREE_ENTRIES = 1024
MAX_FREE_VALUES = 4096
MAX_FREE_KEY = 128
MAX_FREE_TEXT = 8192
MAX_FREE_NUMBER = 1e30

Amount = Annotated[int, Field(ge=0, le=MAX_LARGE)]
Count = Annotated[int, Field(ge=0, le=MAX_SMALL)]
ShortText = Annotated[str, Field(max_length=128)]
LongText = Annotated[str, Field(max_length=512)]
MetricName = Annotated[str, Field(max_length=64)]
Seconds = Annotated[FiniteFloat, Field(ge=-MAX_SECONDS, le=MAX_SECONDS)]


def check_free_form(value: object) -> object:
    """The value itself. Raises ValueError beyond the bounds of a `FreeForm`."""
    waiting, values = [(value, 1)], 0
    while waiting:
        inner, depth = waiting.pop()
        values += 1
        if values > MAX_FREE_VALUES:
            raise ValueError(f"holds more than {MAX_FREE_VALUES} values")
        if isinstance(inner, dict | list | tuple):
            waiting.extend((part, depth + 1) for part in _parts(inner, depth))
        else:
            _check_scalar(inner)
    return value


def _parts(value: dict[Any, Any] | list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
    if depth > MAX_FREE_DEPTH:
        raise ValueError(f"is nested deeper than {MAX_FREE_DEPTH} levels")
    if len(value) > MAX_FREE_ENTRIES:
        raise ValueError(f"has {len(value)} entries in one place, at most {MAX_FREE_ENTRIES} are allowed")
    if not isinstance(value, dict):
        return list(value)
    for key in value:
        if not isinstance(key, str) or len(key) > MAX_FREE_KEY:
            raise ValueError(f"has a name that is no text of at most {MAX_FREE_KEY} characters")
    return list(value.values())


def _check_scalar(value: object) -> None:
    if isinstance(value, str) and len(value) > MAX_FREE_TEXT:
        raise ValueError(f"has a text of {len(value)} characters, at most {MAX_FREE_TEXT} are allowed")
    # What is not finite is told by who knows the field, with its place.
    if isinstance(value, int | float) and MAX_FREE_NUMBER < abs(value) < math.inf:
        raise ValueError(f"has a number beyond {MAX_FREE_NUMBER:g}")


def _free_schema(levels: int) -> list[dict[str, Any]]:
    scalars: list[dict[str, Any]] = [
        {"type": "null"},
        {"type": "boolean"},
        {"type": "number", "minimum": -MAX_FREE_NUMBER, "maximum": MAX_FREE_NUMBER},
        {"type": "string", "maxLength": MAX_FREE_TEXT},
    ]
    if levels == 0:
        return scalars
    inner = {"anyOf": _free_schema(levels - 1)}
    return [*scalars, {"type": "array", "items": inner, "maxItems": MAX_FREE_ENTRIES}, _mapping_of(inner)]


def _mapping_of(inner: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": inner,
        "propertyNames": {"maxLength": MAX_FREE_KEY},
        "maxProperties": MAX_FREE_ENTRIES,
    }


FreeForm = Annotated[
    dict[str, Any],
    BeforeValidator(check_free_form),
    WithJsonSchema(_mapping_of({"anyOf": _free_schema(MAX_FREE_DEPTH - 1)})),
]
"""A mapping whose fields somebody else knows: an algorithm's config, a client's settings."""
