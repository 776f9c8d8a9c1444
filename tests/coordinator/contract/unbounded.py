"""Unbounded parts of a JSON Schema: texts, lists, mappings and numbers that accept values of any size."""

from collections.abc import Iterator
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from tests.coordinator.contract.asking import Document

WIDEST = 1_000_000
BOUNDED_FORMATS = {"date-time", "binary"}


def unbounded(schema: Any, document: Document, at: str = "", within: tuple[str, ...] = ()) -> Iterator[str]:
    """Where in the schema something has no bound, and which."""
    if not isinstance(schema, dict) or not set(schema) - {"title", "description", "default", "examples"}:
        yield f"{at}: anything"
        return
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name not in within:
            found = document.get("$defs", {}).get(name) or document["components"]["schemas"][name]
            yield from unbounded(found, document, at, (*within, name))
        return
    if "const" in schema or "enum" in schema:
        return
    for word in ("anyOf", "oneOf", "allOf"):
        for option in schema.get(word, ()):
            yield from unbounded(option, document, at, within)
    kind = schema.get("type")
    if isinstance(kind, str):
        yield from _unbounded_of[kind](schema, document, at, within)


def _text(schema: Document, document: Document, at: str, within: tuple[str, ...]) -> Iterator[str]:
    if "maxLength" in schema or schema.get("format") in BOUNDED_FORMATS:
        return
    if "pattern" not in schema or widest(schema["pattern"]) > WIDEST:
        yield f"{at}: maxLength"


def widest(pattern: str) -> int:
    """The longest text that fits; beyond any measure for a pattern that does not hold both ends."""
    if not (pattern.startswith("^") and pattern.endswith("$")):
        return WIDEST + 1
    return int(parser.parse(pattern).getwidth()[1])


def _number(schema: Document, document: Document, at: str, within: tuple[str, ...]) -> Iterator[str]:
    for word, other in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if word not in schema and other not in schema:
            yield f"{at}: {word}"


def _list(schema: Document, document: Document, at: str, within: tuple[str, ...]) -> Iterator[str]:
    if "maxItems" not in schema:
        yield f"{at}: maxItems"
    places = schema.get("prefixItems", ())
    for place in places:
        yield from unbounded(place, document, f"{at}/-", within)
    if not places:
        yield from unbounded(schema.get("items"), document, f"{at}/-", within)


def _mapping(schema: Document, document: Document, at: str, within: tuple[str, ...]) -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        yield from unbounded(field, document, f"{at}/{name}", within)
    values = schema.get("additionalProperties", True)
    if values is False:
        return
    if "maxProperties" not in schema:
        yield f"{at}: maxProperties"
    names = schema.get("propertyNames")
    if names is None or (list(_text(names, document, at, within)) and "enum" not in names and "const" not in names):
        yield f"{at}: propertyNames"
    if values is True or isinstance(values, dict):
        yield from unbounded(values, document, f"{at}/*", within)


def _none(schema: Document, document: Document, at: str, within: tuple[str, ...]) -> Iterator[str]:
    yield from ()


_unbounded_of = {
    "string": _text, "integer": _number, "number": _number, "array": _list, "object": _mapping,
    "boolean": _none, "null": _none,
}  # fmt: skip
