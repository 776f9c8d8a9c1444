"""Conventions of the OpenAPI document, tested on a running service: pages, tags, conditions and keys."""

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from coordinator.web.idempotency import HEADER
from tests.coordinator.contract.asking import DOCUMENT, JSON, OPERATIONS, Operation, ask
from tests.coordinator.contract.table import ANSWERED, TRIED_ON
from tests.coordinator.contract.world import ROLES
from tests.support.service import problem

if TYPE_CHECKING:
    from tests.coordinator.contract.world import World

SIGNED_ANEW = {"rotate_worker_key"}
"""Asked again with the key that it replaced, this is nobody's request."""
ANOTHER_TAG = '"another"'


def allowed(operation: Operation, *roles: str) -> str:
    """A role that may do this."""
    return next(role for role in (*roles, *ROLES) if ANSWERED[operation.id][role] == "ok")


def asked(
    world: "World", operation: Operation, role: str = "", query: str = "", **headers: str | None
) -> httpx.Response:
    """The answer to a good request of a role that may do this."""
    role = role or allowed(operation, "owner", "worker")
    return ask(world, DOCUMENT, operation, role, world.ids[TRIED_ON[operation.id]], query, headers)


class TestPages:
    def test_following_next_shows_the_whole_list(self, world: "World") -> None:
        long = 0
        for operation in OPERATIONS:
            if operation.is_list:
                role = allowed(operation, "admin")
                whole = asked(world, operation, role, "limit=200").json()
                assert whole["next_cursor"] is None, operation.id
                pages = followed(world, asked(world, operation, role, "limit=1"), role)
                assert [named(item) for page in pages for item in page] == [named(item) for item in whole["items"]]
                assert all(len(page) == 1 for page in pages) or not whole["items"], operation.id
                long += len(pages) > 1
        assert long >= 8

    def test_a_made_up_cursor_is_refused(self, world: "World") -> None:
        for operation in OPERATIONS:
            if operation.is_list:
                problem(asked(world, operation, query="cursor=%C3%A9"), 400, "cursor_invalid")


def named(item: dict[str, Any]) -> dict[str, Any]:
    """What tells it from others, and does not change while somebody reads."""
    return {name: item[name] for name in ("id", "name", "number", "federation_id", "organization_id") if name in item}


def followed(world: "World", first: httpx.Response, role: str) -> list[list[Any]]:
    pages, answer = [first.json()["items"]], first
    while "next" in answer.links:
        assert answer.json()["next_cursor"] in answer.links["next"]["url"]
        following = answer.links["next"]["url"]
        answer = world.service.anonymous.get(following, headers=world.authorization(role))
        pages.append(answer.json()["items"])
    assert answer.json()["next_cursor"] is None
    return pages


def answered_twice(world: "World", operation: Operation) -> tuple[httpx.Response, str]:
    """The answer to who has the one before it, and the tag it was asked with; a worker may fall silent in between."""
    for _ in range(3):
        etag = asked(world, operation).headers["etag"]
        again = asked(world, operation, **{"If-None-Match": etag})
        if again.status_code == 304:
            break
    return again, etag


class TestTags:
    def test_who_has_it_already_is_answered_304(self, world: "World") -> None:
        for operation in OPERATIONS:
            if "304" in operation.said["responses"]:
                again, etag = answered_twice(world, operation)
                assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag), operation.id
                assert asked(world, operation, **{"If-None-Match": ANOTHER_TAG}).status_code == 200, operation.id

    def test_a_change_of_what_was_not_seen_is_refused(self, world: "World") -> None:
        for operation in OPERATIONS:
            if "412" in operation.said["responses"]:
                problem(asked(world, operation, **{"If-Match": ANOTHER_TAG}), 412, "changed_meanwhile")

    def test_a_change_that_must_be_conditional_is_refused_without_condition(self, world: "World") -> None:
        for operation in OPERATIONS:
            if "428" in operation.said["responses"]:
                problem(asked(world, operation, **{"If-Match": None}), 428, "if_match_missing")


class TestKeys:
    def test_the_same_post_is_done_once_and_answered_alike(self, world: "World") -> None:
        for operation in OPERATIONS:
            if operation.method == "POST" and operation.id not in SIGNED_ANEW:
                first, again = (asked(world, operation, **{HEADER: operation.id}) for _ in range(2))
                assert first.is_success, operation.id
                assert again.headers["idempotency-replayed"] == "true", operation.id
                assert again.status_code == first.status_code, operation.id
                assert open_part(again) == open_part(first), operation.id
                world.restore()


def open_part(answer: httpx.Response) -> Any:
    """The answer without what is shown once."""
    if not answer.content:
        return None
    return {
        name: value for name, value in answer.json().items() if name not in ("key", "token", "secret", "secret_shown")
    }


class TestAddresses:
    def test_what_was_made_is_found_where_the_answer_says(self, world: "World") -> None:
        for operation in OPERATIONS:
            for status in {"201", "202"} & operation.said["responses"].keys():
                if "Location" in operation.said["responses"][status].get("headers", {}):
                    role = allowed(operation, "owner", "admin")
                    made = asked(world, operation, role)
                    if made.status_code == 200:  # done at once
                        continue
                    found = world.service.anonymous.get(made.headers["location"], headers=world.authorization(role))
                    assert found.status_code == 200, (operation.id, found.text)
                    world.restore()


class TestBadRequests:
    def test_a_parameter_that_is_not_known_is_named(self, world: "World") -> None:
        for operation in OPERATIONS:
            if operation.path.startswith("/v1"):
                found = problem(asked(world, operation, query="limmit=3"), 422, "request_invalid")
                assert [error["pointer"] for error in found["errors"]] == ["#query/limmit"], operation.id

    @pytest.mark.parametrize("body", [b'"\xff"', b"{", b"[" * 16_000, b'{"a": "\\ud800"}', b"NaN", b"7"])
    def test_a_body_that_is_none_is_refused_as_one(self, world: "World", body: bytes) -> None:
        for operation in OPERATIONS:
            if JSON in (operation.body() or {}):
                role = allowed(operation, "owner", "worker")
                url = operation.path.format_map(world.ids[TRIED_ON[operation.id]])
                headers = world.authorization(role) | {"Content-Type": JSON}
                answer = world.service.anonymous.request(operation.method, url, content=body, headers=headers)
                assert problem(answer, 422, "request_invalid")["errors"], operation.id

    def test_a_body_larger_than_the_limit_is_refused(self, world: "World") -> None:
        for operation in OPERATIONS:
            if JSON in (operation.body() or {}):
                url = operation.path.format_map(world.ids[TRIED_ON[operation.id]])
                answer = world.service.anonymous.request(operation.method, url, content=b" " * (1024**2 + 1))
                problem(answer, 413, "body_too_large")
