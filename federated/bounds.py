"""Default limits on wire data: sizes, counts, texts, and free-form JSON values.

They apply where a field has no limit of its own. They are wider than any legitimate message needs and narrow enough
that no message is expensive to process.
"""

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, FiniteFloat, WithJsonSchema

MAX_LARGE = 2**53 - 1
"""Many JSON readers lose precision beyond this integer."""
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
    """Return the value unchanged. Raises ValueError if it exceeds the limits of a `FreeForm`."""
    stack, values = [(value, 1)], 0
    while stack:
        inner, depth = stack.pop()
        values += 1
        if values > MAX_FREE_VALUES:
            raise ValueError(f"contains more than {MAX_FREE_VALUES} values")
        if isinstance(inner, dict | list | tuple):
            stack.extend((part, depth + 1) for part in _parts(inner, depth))
        else:
            _check_scalar(inner)
    return value


def _parts(value: dict[Any, Any] | list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
    if depth > MAX_FREE_DEPTH:
        raise ValueError(f"is nested deeper than {MAX_FREE_DEPTH} levels")
    if len(value) > MAX_FREE_ENTRIES:
        raise ValueError(f"has a list or object of {len(value)} entries, at most {MAX_FREE_ENTRIES} are allowed")
    if not isinstance(value, dict):
        return list(value)
    for key in value:
        if not isinstance(key, str) or len(key) > MAX_FREE_KEY:
            raise ValueError(f"has a key that is not a string of at most {MAX_FREE_KEY} characters")
    return list(value.values())


def _check_scalar(value: object) -> None:
    if isinstance(value, str) and len(value) > MAX_FREE_TEXT:
        raise ValueError(f"has a text of {len(value)} characters, at most {MAX_FREE_TEXT} are allowed")
    # NaN and infinity are rejected by the validator of the field, which can name the place.
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
"""A mapping that another component validates: an algorithm's config, a client's settings."""
