"""Limits on requests: rejected before validation, before parsing, or before any of the body is read."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.hostile import bodies
from coordinator.web import body_limits
from coordinator.web.problem_details import MAX_FAULTS
from federated.bounds import MAX_FREE_DEPTH, MAX_FREE_ENTRIES, MAX_FREE_TEXT, MAX_FREE_VALUES, check_free_form
from tests.coordinator.contract.asking import DOCUMENT, JSON, Operation, example, operations
from tests.support.service import Organization, Service, created, problem

if TYPE_CHECKING:
    from collections.abc import Mapping

TAKE_JSON = [operation for operation in operations(DOCUMENT) if JSON in (operation.body() or {})]
LARGEST = 1024**2
SAID_AS = "x-max-body-bytes"
BY_ORGANIZATION = "/v1/organizations/{organization_id}"
FEW_ADMITTED = {"create_organization", "create_federation", "change_federation", "create_api_key", "create_webhook"}


def asked(client: httpx.Client, operation: Operation, body: bytes, **headers: str) -> httpx.Response:
    """The answer to this body, at addresses at which there is nothing."""
    path = operation.path.replace("{", "").replace("}", "")
    sent = {"Content-Type": JSON, "If-Match": "*", **headers}
    return client.request(operation.method, path, content=body, headers=sent)


def hostile(operation: Operation, size_bytes: int = LARGEST) -> Iterator[tuple[str, bytes]]:
    return bodies(size_bytes, example(operation, DOCUMENT) or {})


def free(value: Any, depth: int = 0) -> bool:
    """The bounds of a free form, said again."""
    if isinstance(value, dict):
        return depth < MAX_FREE_DEPTH and all(free(inner, depth + 1) for inner in value.values())
    if isinstance(value, list):
        return depth < MAX_FREE_DEPTH and all(free(inner, depth + 1) for inner in value)
    return True


@pytest.fixture
def clinic(service: Service) -> Organization:
    return service.new_organization("clinic")


class TestHostileBodies:
    def test_nobody_is_refused_before_a_body_is_read(self, service: Service) -> None:
        for operation in TAKE_JSON:
            for name, body in hostile(operation):
                answer = asked(service.anonymous, operation, body)
                expected = 413 if operation.id == "enroll_worker" else 401
                assert answer.status_code == expected, (operation.id, name, answer.text)

    def test_a_role_that_may_not_is_refused_before_a_body_is_read(self, clinic: Organization) -> None:
        client: Mapping[str, httpx.Client] = {"viewer": clinic.viewer, "operator": clinic.operator}
        for operation in TAKE_JSON:
            if operation.id in ("enroll_worker", "announce_upload"):  # anybody may, in 16 kB
                continue
            for role in client if operation.id in FEW_ADMITTED else ("viewer",):
                for name, body in hostile(operation):
                    answer = asked(client[role], operation, body)
                    assert answer.status_code == 403, (operation.id, role, name, answer.text)

    def test_who_may_is_told_few_errors_and_the_process_stays_as_large(
        self, service: Service, clinic: Organization
    ) -> None:
        worker = service.new_worker(clinic, "gpu")
        for operation in TAKE_JSON:
            asked(clinic.owner, operation, b"[" + b"1," * 1000 + b"1]")
        resident = psutil.Process().memory_info().rss
        for operation in TAKE_JSON:
            for size_bytes in {LARGEST, body_limits.bound_of(operation.said)}:
                for name, body in hostile(operation, size_bytes):
                    for client in (clinic.owner, worker.http):
                        answer = asked(client, operation, body)
                        assert answer.status_code in (401, 403, 404, 413, 422), (operation.id, name, answer.text)
                        assert len(answer.json().get("errors", ())) <= MAX_FAULTS, (operation.id, name)
        assert psutil.Process().memory_info().rss - resident < 32 * 1024**2

    def test_it_is_said_where_there_is_too_much(self, clinic: Organization) -> None:
        fields = {f"a{number}": number for number in range(body_limits.MAX_ENTRIES + 1)}
        for pointer, body in (
            ("", fields),
            ("/config", {"config": fields}),
            ("/config" + "/a" * (body_limits.MAX_DEPTH - 1), {"config": nested(body_limits.MAX_DEPTH + 1)}),
        ):
            answer = clinic.owner.post("/v1/federations", json=body)
            assert [error["pointer"] for error in problem(answer, 422, "request_invalid")["errors"]] == [pointer]

    def test_a_body_that_comes_in_pieces_is_bounded_too(self, service: Service) -> None:
        pieces = (b"[" for _ in range(body_limits.BODY_BYTES + 1))
        answer = service.anonymous.post("/v1/workers/enroll", content=pieces, headers={"Content-Type": JSON})
        problem(answer, 413, "body_too_large")

    def test_an_operation_without_a_body_takes_no_large_one(self, clinic: Organization) -> None:
        answer = clinic.owner.post("/v1/federations/fed_0/cancel", content=b" " * (body_limits.BODY_BYTES + 1))
        problem(answer, 413, "body_too_large")


class TestWhatIsMeantWell:
    def test_every_example_is_far_below_its_bound(self) -> None:
        for operation in TAKE_JSON:
            size_bytes = len(json.dumps(example(operation, DOCUMENT)))
            assert size_bytes * 4 < body_limits.bound_of(operation.said), operation.id

    def test_a_thousand_long_labels_are_taken(self, clinic: Organization) -> None:
        schema: dict[str, Any] = DOCUMENT["components"]["schemas"]["FederationCreate"]
        labels = [f"{number:04}" + "l" * 252 for number in range(1024)]
        body = dict(schema["examples"][0]) | {"task": {"task": "sequence_classification", "labels": labels}}
        assert created(clinic.owner.post("/v1/federations", json=body))["definition"]["task"]["labels"] == labels
        body["task"]["labels"] = [*labels, "one more"]
        answer = clinic.owner.post("/v1/federations", json=body)
        assert [error["pointer"] for error in problem(answer, 422, "request_invalid")["errors"]] == ["/task/labels"]

    def test_a_worker_may_name_a_thousand_data_sets_and_models(self, service: Service, clinic: Organization) -> None:
        names = [f"{number:04}" + "n" * 100 for number in range(1024)]
        offered = {"datasets": [{"name": name} for name in names], "models": names}
        assert service.new_worker(clinic, "gpu").heartbeat(capabilities=offered).status_code == 200


def nested(levels: int) -> dict[str, Any]:
    """A mapping within a mapping, so many times."""
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


class TestFreeForm:
    @pytest.mark.parametrize(
        "value",
        [
            {"a": nested(MAX_FREE_DEPTH)},
            {str(number): 1 for number in range(MAX_FREE_ENTRIES + 1)},
            {"a": [[0] * 1000] * (MAX_FREE_VALUES // 1000 + 1)},
            {"a": "t" * (MAX_FREE_TEXT + 1)},
            {"k" * 129: 1},
            {"a": 10**40},
        ],
    )
    def test_what_is_beyond_a_bound_is_refused_where_it_stands(
        self, clinic: Organization, value: dict[str, Any]
    ) -> None:
        schema: dict[str, Any] = DOCUMENT["components"]["schemas"]["FederationCreate"]
        body = json.dumps(dict(schema["examples"][0]) | {"config": value})
        answer = clinic.owner.post("/v1/federations", content=body, headers={"Content-Type": JSON})
        assert [error["pointer"] for error in problem(answer, 422, "request_invalid")["errors"]] == ["/config"]

    @given(
        st.dictionaries(
            st.text(max_size=8),
            st.recursive(
                st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=20),
                lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
                max_leaves=30,
            ),
            max_size=8,
        )
    )
    def test_depth_alone_decides_over_what_is_small(self, value: dict[str, Any]) -> None:
        try:
            assert check_free_form(value) is value
        except ValueError:
            assert not free(value)
        else:
            assert free(value)
