"""Every text, list, number and mapping that a request may hold has a bound, and the document says it."""

from collections.abc import Iterator

import pytest

from federated import registry
from tests.coordinator.contract.asking import DOCUMENT, OPERATIONS
from tests.coordinator.contract.unbounded import unbounded, widest

METRICS = ("/metrics/*", "/evaluation/*/*")
"""Values of metrics: what a node measured may be any number, and is judged where it is read."""
CHECKED_ELSEWHERE = {"change_federation /*: anything"}
"""Fields of a draft, which are checked as those of `FederationCreate`."""


def found_in_bodies() -> Iterator[str]:
    for operation in OPERATIONS:
        for said in (operation.body() or {}).values():
            for fault in unbounded(said["schema"], DOCUMENT):
                if not fault.partition(": ")[0].endswith(METRICS):
                    yield f"{operation.id} {fault}"


def found_in_parameters() -> Iterator[str]:
    for operation in OPERATIONS:
        for parameter in operation.said.get("parameters", ()):
            for fault in unbounded(parameter["schema"], DOCUMENT):
                yield f"{operation.id} {parameter['in']} {parameter['name']}{fault}"


class TestTheDocument:
    def test_no_body_has_a_field_without_bounds(self) -> None:
        assert sorted(set(found_in_bodies()) - CHECKED_ELSEWHERE) == []

    def test_no_parameter_is_without_bounds(self) -> None:
        assert sorted(found_in_parameters()) == []

    @pytest.mark.parametrize("algorithm", sorted(registry.algorithms()))
    def test_no_config_has_a_field_without_bounds(self, algorithm: str) -> None:
        schema = registry.algorithm(algorithm).config.model_json_schema()
        assert list(unbounded(schema, schema)) == []


class TestTheWalk:
    @pytest.mark.parametrize(
        ("schema", "fault"),
        [
            ({"type": "string"}, ": maxLength"),
            ({"type": "string", "pattern": "^a*$"}, ": maxLength"),
            ({"type": "string", "pattern": "a"}, ": maxLength"),
            ({"type": "integer", "minimum": 0}, ": maximum"),
            ({"type": "number", "exclusiveMaximum": 0}, ": minimum"),
            ({"type": "array", "items": {"type": "null"}}, ": maxItems"),
            ({"type": "array", "maxItems": 1, "items": {"type": "string"}}, "/-: maxLength"),
            ({"type": "object", "additionalProperties": {"type": "null"}, "maxProperties": 1}, ": propertyNames"),
            ({"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}]}}, "additionalProperties": False},
             "/a: maxLength"),
            ({}, ": anything"),
        ],
    )  # fmt: skip
    def test_it_sees_what_has_no_bound(self, schema: dict[str, object], fault: str) -> None:
        assert list(unbounded(schema, {})) == [fault]

    def test_a_pattern_bounds_a_text(self) -> None:
        assert widest("^[a-z]{1,64}$") == 64
