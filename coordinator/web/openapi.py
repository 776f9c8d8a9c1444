"""Completion of the OpenAPI document: common responses and headers, problem schemas and examples.

The responses in `examples.json` were recorded from a running service by tests/coordinator/contract/recording.py.
Request examples are composed of the examples of their fields.
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
    "ETag": {"description": "Entity tag of the response", "schema": {"type": "string"}},
    "Link": {"description": '`<…>; rel="next"`, unless this is the last page', "schema": {"type": "string"}},
    "Location": {"description": "Path of the new resource, or of the one to poll", "schema": {"type": "string"}},
}


def complete(document: dict[str, Any]) -> None:
    """Adds responses, headers, schemas and examples that follow from the rest of the document."""
    for operation in operations(document):
        operation.setdefault("security", [])
        if "requestBody" in operation:
            operation["responses"].setdefault("413", problem_response(413))
        for status, names in _header_names(operation).items():
            headers = operation["responses"][status].setdefault("headers", {})
            headers.update({name: _HEADERS[name] for name in names})
    schemas = document["components"]["schemas"]
    schemas[Problem.__name__] = Problem.model_json_schema()
    _add_examples(schemas)


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All operations, in the document's order."""
    return (item[method] for item in document["paths"].values() for method in METHODS if method in item)


def _header_names(operation: dict[str, Any]) -> dict[str, list[str]]:
    """Status -> headers of a response with it."""
    parameters = {parameter["name"].lower() for parameter in operation.get("parameters", [])}
    names: dict[str, list[str]] = {}
    if "304" in operation["responses"]:
        names = {"200": ["ETag"], "304": ["ETag"]}
    if "428" in operation["responses"]:
        names = {"200": ["ETag"]}
    if "cursor" in parameters:
        names["200"].append("Link")
    if "202" in operation["responses"]:
        names["202"] = ["Location"]
    return names


# ---- examples


def _add_examples(schemas: dict[str, Any]) -> None:
    recordings = _recordings()
    for name, schema in schemas.items():
        if "examples" in schema:
            continue
        example = recordings[name] if name in recordings else _compose_example(schema)
        if example is not None:
            schema["examples"] = [example]


def _compose_example(schema: dict[str, Any]) -> dict[str, Any] | None:
    """An object of the first example of each field, or None if a required field has no example."""
    fields = schema.get("properties", {})
    example = {name: field["examples"][0] for name, field in fields.items() if field.get("examples")}
    return example if set(schema.get("required", ())) <= set(example) and (example or fields) else None


@cache
def _recordings() -> dict[str, Any]:
    """Name of a schema -> a recorded response."""
    text = files("coordinator.web").joinpath("examples.json").read_text(encoding="utf-8")
    recordings: dict[str, Any] = json.loads(text)
    return recordings
