"""Permissions: every operation of the document, called in every role and compared with the table."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.coordinator.contract.asking import DOCUMENT, Operation, ask, operations
from tests.coordinator.contract.table import ANSWERED, LINES, TRIED_ON
from tests.coordinator.contract.world import HIDDEN_FROM, ROLES
from tests.support.service import created, problem

if TYPE_CHECKING:
    from tests.coordinator.contract.world import World

OPERATIONS = {operation.id: operation for operation in operations(DOCUMENT)}
OUTSIDERS = ("member", "member_worker", "stranger", "strange_worker")
ABSENT = {
    "organization_id": "org_", "key_id": "key_", "token_id": "tok_", "worker_id": "wkr_", "federation_id": "fed_",
    "client_id": "cli_", "round_id": "rnd_", "job_id": "job_", "upload_id": "upl_", "webhook_id": "whk_",
    "delivery_id": "dlv_",
}  # fmt: skip


def told(answer: httpx.Response) -> str:
    return "ok" if answer.is_success else str(answer.status_code)


def asked(world: "World", operation: Operation, role: str, **other_ids: str) -> httpx.Response:
    """The answer; what it changed is changed back."""
    answer = ask(world, DOCUMENT, operation, role, {**world.ids[TRIED_ON[operation.id]], **other_ids})
    if operation.method != "GET" and answer.is_success:
        world.restore()
    return answer


class TestTheTable:
    def test_its_columns_are_the_roles(self) -> None:
        assert tuple(LINES[0][2:]) == ROLES

    def test_every_operation_has_a_row_and_every_row_an_operation(self) -> None:
        assert [line[0] for line in LINES[1:]] == list(OPERATIONS)

    def test_every_role_is_answered_as_it_says(self, world: "World") -> None:
        wrong: dict[str, Mapping[str, str]] = {}
        for operation in OPERATIONS.values():
            expected = ANSWERED[operation.id]
            answers = {role: asked(world, operation, role) for role in ROLES}
            for role, answer in answers.items():
                assert str(answer.status_code) in operation.said["responses"], (operation.id, role, answer.text)
                if told(answer) != expected[role]:
                    wrong.setdefault(operation.id, {})[role] = f"{expected[role]}, was {told(answer)}: {answer.text}"
        assert wrong == {}


class TestOtherOrganizations:
    def test_what_is_theirs_is_answered_like_what_does_not_exist(self, world: "World") -> None:
        told_apart = {}
        for operation in OPERATIONS.values():
            ids = world.ids[TRIED_ON[operation.id]]
            for role in OUTSIDERS:
                seen = {"federation_id"} if role == "member" else set()
                there = {name: ids[name] for name in ABSENT if name in operation.names("path") - seen}
                absent = {name: ABSENT[name] + "0" * 16 for name in there}
                if there and ANSWERED[operation.id][role] == "404":
                    found, none = asked(world, operation, role), asked(world, operation, role, **absent)
                    if shape(found, there) != shape(none, absent):
                        told_apart[operation.id, role] = (found.text, none.text)
        assert told_apart == {}

    def test_an_owner_reaches_nothing_of_theirs_through_the_own_organization(self, world: "World") -> None:
        for operation in OPERATIONS.values():
            if {"organization_id"} < operation.names("path"):
                answer = asked(world, operation, "stranger", organization_id=world.stranger.id)
                assert answer.status_code == 404, (operation.id, answer.text)

    def test_every_id_that_concerns_them_alone_is_named_to_their_owner(self, world: "World") -> None:
        assert {of: named(world, "owner", of) for of in world.private} == world.private

    @pytest.mark.parametrize(("role", "of"), [(role, of) for role, hidden in HIDDEN_FROM.items() for of in hidden])
    def test_no_answer_names_what_concerns_them_alone(self, world: "World", role: str, of: str) -> None:
        assert named(world, role, of) == set()

    def test_a_worker_of_theirs_cannot_be_registered(self, world: "World") -> None:
        owner = world.stranger.owner
        wish = created(owner.post("/v1/federations", json=federation_of(world)))
        worker = {"worker_id": world.ids["running"]["worker_id"], "dataset": "messages"}
        problem(owner.post(f"/v1/federations/{wish['id']}/clients", json=worker), 404, "worker_unknown")

    def test_an_adapter_of_theirs_is_no_beginning(self, world: "World") -> None:
        wish = federation_of(world) | {"initial_adapter": {"federation_id": world.ids["running"]["federation_id"]}}
        problem(world.stranger.owner.post("/v1/federations", json=wish), 422, "initial_adapter_unknown")

    def test_an_upload_of_theirs_is_no_update(self, world: "World") -> None:
        """The worker's job, but bytes that the organization's own key uploaded."""
        body = {"update": {**world.bodies["submit_job"]["update"], "digest": "sha256:" + "0" * 64}}
        operation = OPERATIONS["submit_job"]
        path = operation.path.format_map(world.ids["running"])
        answer = world.service.anonymous.post(path, json=body, headers=world.authorization("worker"))
        problem(answer, 422, "signature_invalid")


def named(world: "World", role: str, of: str) -> set[str]:
    """What concerns that organization alone, and stands in what this role can read of the running federation."""
    readable = (operation for operation in OPERATIONS.values() if operation.method == "GET")
    texts = [asked(world, operation, role).text for operation in readable if ANSWERED[operation.id][role] == "ok"]
    return {name for name in world.private[of] if any(name in text for text in texts)}


def federation_of(world: "World") -> dict[str, Any]:
    """The document's example of a federation."""
    schema: dict[str, Any] = DOCUMENT["components"]["schemas"]["FederationCreate"]
    return dict(schema["examples"][0])


def shape(answer: httpx.Response, ids: Mapping[str, str]) -> tuple[int, str]:
    """Status and text without the ids that were asked for."""
    text = answer.text
    for name, value in ids.items():
        text = text.replace(value, name)
    return answer.status_code, text
