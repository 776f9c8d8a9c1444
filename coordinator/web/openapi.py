"""What the OpenAPI document says of every operation for the same reason, said once.

The answers in `examples.json` were given by a running service; tests/coordinator/contract/recording.py asks for them
anew. Requests are put together from the examples of their fields.
"""

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from coordinator.web.problem_details import problem_response
from federated.protocol import Problem

METHODS = ("get", "post", "put", "patch", "delete")
_JSON = "application/json"
_HEADERS = {
    "ETag": {"description": "Entity tag of the answer", "schema": {"type": "string"}},
    "Link": {"description": '`<…>; rel="next"`, unless this is the last page', "schema": {"type": "string"}},
    "Location": {"description": "Path of what was made, or of what to poll", "schema": {"type": "string"}},
}


def complete(document: dict[str, Any]) -> None:
    """Adds to the document what follows from it."""
    for operation in operations(document):
        operation.setdefault("security", [])
        if "requestBody" in operation:
            operation["responses"].setdefault("413", problem_response(413))
        for status, names in _promised(operation).items():
            headers = operation["responses"][status].setdefault("headers", {})
            headers.update({name: _HEADERS[name] for name in names})
    schemas = document["components"]["schemas"]
    schemas[Problem.__name__] = Problem.model_json_schema()
    _give_examples(schemas)


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All operations, in the document's order."""
    return (item[method] for item in document["paths"].values() for method in METHODS if method in item)


def _promised(operation: dict[str, Any]) -> dict[str, list[str]]:
    """Status -> headers that such an answer carries."""
    parameters = {given["name"].lower() for given in operation.get("parameters", [])}
    promised: dict[str, list[str]] = {}
    if "304" in operation["responses"]:
        promised = {"200": ["ETag"], "304": ["ETag"]}
    if "428" in operation["responses"]:
        promised = {"200": ["ETag"]}
    if "cursor" in parameters:
        promised["200"].append("Link")
    if "202" in operation["responses"]:
        promised["202"] = ["Location"]
    return promised


# ---- examples


def _give_examples(schemas: dict[str, Any]) -> None:
    recorded = _recorded()
    for name, schema in schemas.items():
        if "examples" in schema:
            continue
        told = recorded[name] if name in recorded else _composed(schema)
        if told is not None:
            schema["examples"] = [told]


def _composed(schema: dict[str, Any]) -> dict[str, Any] | None:
    """An object of the first example of each field, or None if a required one has none."""
    fields = schema.get("properties", {})
    told = {name: field["examples"][0] for name, field in fields.items() if field.get("examples")}
    return told if set(schema.get("required", ())) <= set(told) and (told or fields) else None


@cache
def _recorded() -> dict[str, Any]:
    """Name of a schema -> an answer of that form."""
    text = files("coordinator.web").joinpath("examples.json").read_text(encoding="utf-8")
    recorded: dict[str, Any] = json.loads(text)
    return recorded
