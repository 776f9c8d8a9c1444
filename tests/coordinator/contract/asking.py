"""The operations of the OpenAPI document, and a request for each, made of the document's own examples."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import httpx

from coordinator.app import create_app
from coordinator.web.openapi import METHODS
from tests.coordinator.contract.world import CHUNK, World

JSON = "application/json"
Document = Mapping[str, Any]


@dataclass(frozen=True)
class Operation:
    """One operation; `said` is what the document says of it."""

    id: str
    method: str
    path: str
    said: Document

    def names(self, place: str) -> set[str]:
        """Names of its parameters in this place, in lower case."""
        return {given["name"].lower() for given in self.said.get("parameters", []) if given["in"] == place}

    @property
    def is_list(self) -> bool:
        """Whether it answers page by page."""
        return "cursor" in self.names("query")

    def body(self) -> Document | None:
        """Media type of the body it takes -> what is said of it; None if it takes none."""
        said = self.said.get("requestBody")
        return None if said is None else said["content"]

    def answers(self) -> Iterator[tuple[str, Document]]:
        """Status and description of every answer."""
        yield from self.said["responses"].items()


def operations(document: Document) -> list[Operation]:
    """All operations, in the document's order."""
    return [
        Operation(item[method]["operationId"], method.upper(), path, item[method])
        for path, item in document["paths"].items()
        for method in METHODS
        if method in item
    ]


DOCUMENT: Document = create_app().openapi()
"""The product's own."""
OPERATIONS = operations(DOCUMENT)


def resolved(schema: Document, document: Document) -> Document:
    """The schema, or the one that it names."""
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def example(operation: Operation, document: Document) -> dict[str, Any] | None:
    """The document's example of the JSON body that the operation takes, if it takes any."""
    said = (operation.body() or {}).get(JSON)
    if said is None:
        return None
    named = [resolved(option, document) for option in said["schema"].get("anyOf", [said["schema"]])]
    return dict(next(schema for schema in named if schema.get("examples"))["examples"][0])


def ask(
    world: World,
    document: Document,
    operation: Operation,
    role: str,
    ids: Mapping[str, str],
    query: str = "",
    headers: Mapping[str, str | None] = MappingProxyType({}),
) -> httpx.Response:
    """The answer to a good request of this role, with these headers instead of others; None: without one."""
    condition = {"If-Match": world.conditions.get(operation.id, "*")}
    conditional = condition if "if-match" in operation.names("header") else {}
    body = example(operation, document)
    if body is not None:
        body |= {**world.bodies.get(operation.id, {}), **world.bodies_of.get((operation.id, role), {})}
    sent = {**world.authorization(role), **conditional, **headers}
    content = CHUNK if operation.id == "put_chunk" else None
    return world.service.anonymous.request(
        operation.method,
        operation.path.format_map(ids) + (f"?{query}" if query else ""),
        json=body,
        content=content,
        headers={name: value for name, value in sent.items() if value is not None},
    )
