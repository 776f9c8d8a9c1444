"""Entity tags over real HTTP: 304 for a known response, 412 and 428 for changes."""

from typing import Any

import httpx
import pytest

from coordinator.errors import PreconditionFailed, PreconditionRequired
from coordinator.web import etags
from tests.support.service import EnrolledWorker, Organization, Service, created, problem

DRAFT = {
    "name": "messages",
    "algorithm": "fedavg",
    "base_model": {"id": "tiny"},
    "task": {"task": "sequence_classification", "labels": ["a", "b"]},
    "trainable": {"kind": "lora", "target_modules": ["query"]},
}


def draft(bank: Organization) -> str:
    return "/v1/federations/" + str(created(bank.owner.post("/v1/federations", json=DRAFT))["id"])


def poll(client: httpx.Client, path: str, etag: str) -> httpx.Response:
    return client.get(path, headers={"If-None-Match": etag})


def change(client: httpx.Client, path: str, etag: str | None, **fields: Any) -> httpx.Response:
    return client.patch(path, json=fields, headers={} if etag is None else {"If-Match": etag})


class TestPolls:
    def test_what_did_not_change_is_answered_304(self, bank: Organization, worker: EnrolledWorker) -> None:
        federation = draft(bank)
        paths = (
            federation, "/v1/federations", f"{federation}/rounds", f"{federation}/clients", f"{federation}/events",
            f"/v1/workers/{worker.id}", "/v1/workers", f"/v1/organizations/{bank.id}", "/v1/invitations",
            "/v1/algorithms", "/v1/algorithms/fedavg",
        )  # fmt: skip
        for path in paths:
            first = bank.viewer.get(path)
            etag = first.headers["etag"]
            assert (first.status_code, etag[0], etag[-1]) == (200, '"', '"'), path
            again = poll(bank.viewer, path, etag)
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag), path
            assert poll(bank.viewer, path, '"another"').content == first.content

    def test_what_changed_is_shown(self, bank: Organization) -> None:
        federation = draft(bank)
        alone, listed = (bank.viewer.get(path).headers["etag"] for path in (federation, "/v1/federations"))
        bank.owner.post(f"{federation}/start").raise_for_status()
        assert poll(bank.viewer, federation, alone).json()["state"] == "running"
        assert poll(bank.viewer, "/v1/federations", listed).json()["items"][0]["state"] == "running"

    def test_what_changed_beside_the_row_is_shown(self, bank: Organization, worker: EnrolledWorker) -> None:
        federation = draft(bank)
        etag = bank.viewer.get(federation).headers["etag"]
        client = {"worker_id": worker.id, "dataset": "messages"}
        worker.heartbeat(capabilities={"datasets": [{"name": "messages"}], "algorithms": {"fedavg": 1}})
        created(bank.owner.post(f"{federation}/clients", json=client))
        assert poll(bank.viewer, federation, etag).json()["clients"]["registered"] == 1

    def test_no_right_is_gained_by_knowing_a_tag(self, service: Service, bank: Organization) -> None:
        federation = draft(bank)
        etag = bank.viewer.get(federation).headers["etag"]
        stranger = service.new_organization("stranger").owner
        problem(poll(stranger, federation, etag), 404, "federation_unknown")


class TestChanges:
    def test_a_change_needs_the_tag_of_what_was_seen(self, bank: Organization) -> None:
        federation = draft(bank)
        problem(change(bank.owner, federation, None, rounds=3), 428, "if_match_missing")
        seen = bank.owner.get(federation).headers["etag"]
        changed = change(bank.owner, federation, seen, rounds=3)
        assert changed.status_code == 200, changed.text
        problem(change(bank.owner, federation, seen, rounds=4), 412, "changed_meanwhile")
        assert bank.owner.get(federation).json()["definition"]["rounds"] == 3

    def test_the_answer_to_a_change_has_the_tag_for_the_next(self, bank: Organization) -> None:
        made = bank.owner.post("/v1/federations", json=DRAFT)
        path = made.headers["location"]
        first = change(bank.owner, path, made.headers["etag"], rounds=3)
        second = change(bank.owner, path, first.headers["etag"], rounds=4)
        assert second.status_code == 200, second.text
        assert second.headers["etag"] == bank.viewer.get(path).headers["etag"]

    def test_a_worker_that_came_since_does_not_hinder_it(self, service: Service, bank: Organization) -> None:
        federation = draft(bank)
        seen = bank.owner.get(federation).headers["etag"]
        guest = service.new_organization("Clinic")
        created(bank.owner.post(f"{federation}/invitations", json={"organization_id": guest.id}))
        assert change(bank.owner, federation, seen, rounds=3).status_code == 200

    def test_a_star_changes_whatever_is_there(self, bank: Organization) -> None:
        assert change(bank.owner, draft(bank), "*", rounds=3).status_code == 200

    def test_a_deletion_with_an_old_tag_deletes_nothing(self, bank: Organization) -> None:
        federation = draft(bank)
        seen = bank.owner.get(federation).headers["etag"]
        change(bank.owner, federation, seen, rounds=3).raise_for_status()
        problem(bank.owner.delete(federation, headers={"If-Match": seen}), 412, "changed_meanwhile")
        seen = bank.owner.get(federation).headers["etag"]
        assert bank.owner.delete(federation, headers={"If-Match": seen}).status_code == 204
        assert bank.owner.delete(draft(bank)).status_code == 204

    def test_a_worker_is_revoked_as_it_was_seen(self, bank: Organization, worker: EnrolledWorker) -> None:
        path = f"/v1/workers/{worker.id}"
        old = bank.owner.get(path).headers["etag"]
        worker.heartbeat(capabilities={"device": "cuda"}).raise_for_status()
        problem(bank.owner.delete(path, headers={"If-Match": old}), 412, "changed_meanwhile")
        seen = bank.owner.get(path).headers["etag"]
        worker.heartbeat().raise_for_status()
        assert bank.owner.delete(path, headers={"If-Match": seen}).status_code == 204
        assert bank.owner.get(path).json()["state"] == "revoked"


class TestTags:
    @pytest.mark.parametrize("given", ['"3-a"', 'W/"3-a"', '"x", "3-a"', '"x",W/"3-a"', "*"])
    def test_a_poll_knows_a_tag(self, given: str) -> None:
        assert etags.matches_etag(given, '"3-a"')

    @pytest.mark.parametrize("given", [None, "", '"3-b"', "3-a", '"x", "y"'])
    def test_a_poll_does_not_know_another(self, given: str | None) -> None:
        assert not etags.matches_etag(given, '"3-a"')

    @pytest.mark.parametrize("given", ['"3-a"', '"3-b"', '"1-x", "3-a"', "*"])
    def test_a_change_may_follow_the_version_it_saw(self, given: str) -> None:
        etags.require_match(given, 3)

    @pytest.mark.parametrize("given", ['"2-a"', 'W/"3-a"', "3-a", "", '"33-a"', '"-3"'])
    def test_a_change_may_not_follow_another(self, given: str) -> None:
        with pytest.raises(PreconditionFailed):
            etags.require_match(given, 3)

    def test_only_a_change_that_must_needs_a_condition(self) -> None:
        etags.check_match(None, 3)
        with pytest.raises(PreconditionRequired):
            etags.require_match(None, 3)

    def test_a_tag_changes_with_the_body_and_the_version(self) -> None:
        made = [etags.etag_of(body, version) for body in (b"a", b"b") for version in (None, '"1"', '"2"')]
        assert len(set(made)) == 6
        assert etags.etag_of(b"a", '"1"') == '"1-ca978112ca1bbdcafac231b39a23dc4d"'
