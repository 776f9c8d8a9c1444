"""The OpenAPI document keeps every convention of the API, for every operation in it."""

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from federated import __version__
from tests.coordinator.contract.asking import DOCUMENT, JSON, OPERATIONS, Document, Operation, resolved
from tests.support.service import Service

PROBLEM_JSON = "application/problem+json"
PUBLIC = {"healthz", "readyz", "version", "metrics", "enroll_worker"}
AGREEMENTS = {"accept_invitation"}
HEALTH = PUBLIC - {"enroll_worker"}
WITHOUT_ADDRESS = {"create_api_key", "create_enrollment_token", "invite_organization"}
"""What they make is shown in lists alone."""


def statuses(operation: Operation) -> set[str]:
    return {status for status, _ in operation.answers()}


def answered(operation: Operation) -> Mapping[str, Any]:
    """The answer to what went well."""
    return next(said for status, said in operation.answers() if status < "300")


def schema_of(operation: Operation) -> Document:
    """The schema of the JSON that it answers, empty if it is none."""
    content = answered(operation).get("content", {})
    return resolved(content.get(JSON, {}).get("schema", {}), DOCUMENT)


def named_alike(operation: Operation, method: str) -> bool:
    """Whether the same address also takes this method."""
    return any((other.method, other.path) == (method, operation.path) for other in OPERATIONS)


class TestTheWhole:
    def test_it_is_of_version_3_1(self) -> None:
        assert DOCUMENT["openapi"].startswith("3.1")

    def test_every_operation_has_an_id_of_its_own(self) -> None:
        names = [operation.id for operation in OPERATIONS]
        assert len(set(names)) == len(names) > 50

    def test_what_needs_no_credentials_is_known(self) -> None:
        assert {operation.id for operation in OPERATIONS if not operation.said["security"]} == PUBLIC

    def test_every_reference_leads_somewhere(self) -> None:
        known = {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}
        assert set(references(DOCUMENT)) <= known

    def test_a_field_that_is_shown_once_says_so(self) -> None:
        for name, schema in DOCUMENT["components"]["schemas"].items():
            fields = schema.get("properties", {})
            assert ("secret_shown" in fields) == name.endswith("Created"), name

    def test_every_example_is_of_its_schema(self) -> None:
        found = 0
        for name, schema in DOCUMENT["components"]["schemas"].items():
            for told in schema.get("examples", ()):
                found += 1
                validate(told, {"$ref": f"#/components/schemas/{name}"})
        assert found > 40

    def test_the_running_service_shows_it(self, service: Service) -> None:
        assert service.anonymous.get("/openapi.json").json() == DOCUMENT
        assert DOCUMENT["info"]["version"] == __version__
        assert service.anonymous.get("/docs").status_code == 200


class TestEveryOperation:
    def test_says_what_it_does(self) -> None:
        for operation in OPERATIONS:
            assert operation.said["tags"], operation.id
            assert operation.said["summary"], operation.id
            assert operation.said["description"].endswith((".", "`")), operation.id

    def test_says_its_errors_as_problems(self) -> None:
        for operation in OPERATIONS:
            for status, said in operation.answers():
                if status >= "400":
                    told = said["content"][PROBLEM_JSON]
                    assert told["schema"] == {"$ref": "#/components/schemas/Problem"}, operation.id
                    validate(told["example"], told["schema"])

    def test_says_who_is_refused_and_what_may_be_missing(self) -> None:
        for operation in OPERATIONS:
            wanted = set() if operation.id in HEALTH else {"401", "422", "429", "503"}
            wanted |= {"404"} if operation.names("path") else set()
            wanted |= {"413"} if operation.body() is not None else set()
            assert wanted <= statuses(operation), operation.id

    def test_says_how_long_to_wait(self) -> None:
        for operation in OPERATIONS:
            for status, said in operation.answers():
                assert ("Retry-After" in said.get("headers", {})) == (status in ("429", "503")), operation.id

    def test_a_post_takes_an_idempotency_key(self) -> None:
        for operation in OPERATIONS:
            assert ("idempotency-key" in operation.names("header")) == (operation.method == "POST"), operation.id
            assert "409" in statuses(operation) or operation.method != "POST", operation.id

    def test_what_is_polled_or_downloaded_has_a_tag(self) -> None:
        for operation in OPERATIONS:
            tagged = operation.method == "GET" and operation.id not in HEALTH
            assert ("if-none-match" in operation.names("header")) == ("304" in statuses(operation)) == tagged, (
                operation.id
            )
            if tagged:
                assert "ETag" in answered(operation)["headers"], operation.id

    def test_a_change_of_what_is_tagged_can_be_conditional(self) -> None:
        for operation in OPERATIONS:
            changes = operation.method in ("PATCH", "PUT", "DELETE") and named_alike(operation, "GET")
            conditional = "if-match" in operation.names("header")
            assert conditional or not changes, operation.id
            assert ("412" in statuses(operation)) == conditional, operation.id
            rests_on_what_was_seen = operation.id in AGREEMENTS or (changes and operation.method != "DELETE")
            assert ("428" in statuses(operation)) == rests_on_what_was_seen, operation.id

    def test_a_list_is_given_page_by_page(self) -> None:
        for operation in OPERATIONS:
            answer = schema_of(operation).get("properties", {})
            if "items" not in answer:
                assert not operation.is_list, operation.id
            elif "next_after" in answer:  # of a federation's events, which are counted
                assert {"after", "wait"} <= operation.names("query"), operation.id
            else:
                assert {"limit", "cursor"} <= operation.names("query"), operation.id
                assert "next_cursor" in answer, operation.id
                assert "Link" in answered(operation)["headers"], operation.id
                assert "400" in statuses(operation), operation.id

    def test_what_is_made_or_goes_on_has_an_address(self) -> None:
        for operation in OPERATIONS:
            for status, said in operation.answers():
                if status in ("201", "202"):
                    assert ("Location" in said.get("headers", {})) == (operation.id not in WITHOUT_ADDRESS), (
                        operation.id
                    )

    def test_a_request_has_an_example(self) -> None:
        for operation in OPERATIONS:
            for media_type, said in (operation.body() or {}).items():
                if media_type == JSON:
                    options = [resolved(option, DOCUMENT) for option in said["schema"].get("anyOf", [said["schema"]])]
                    assert any(option.get("examples") for option in options), operation.id

    def test_an_answer_has_an_example(self) -> None:
        for operation in OPERATIONS:
            for status, said in operation.answers():
                if status < "300" and JSON in said.get("content", {}) and said["content"][JSON].get("schema"):
                    assert resolved(said["content"][JSON]["schema"], DOCUMENT).get("examples"), operation.id


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def validate(told: Any, schema: Document) -> None:
    """Raises unless the value is of the schema, which is a reference into the document."""
    registry: Registry[Any] = Registry().with_resource("document", DRAFT202012.create_resource(DOCUMENT))
    absolute = {"$ref": "document" + schema["$ref"]}
    jsonschema.Draft202012Validator(absolute, registry=registry).validate(told)
