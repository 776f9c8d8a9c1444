"""The ledger: each organization's contributions, summed from its jobs, and kept when a federation is deleted."""

from typing import Any

import httpx
import pytest

from coordinator.db.sessions import reading
from coordinator.models import Job, LedgerEntry, Round
from federated.payloads.payload import Payload
from tests.support.federation_rig import Actor, FederationRig, update_of
from tests.support.service import Organization, accept, created, problem

NOTHING = {
    "rounds": 0, "examples": 0, "download_bytes": 0, "upload_bytes": 0, "training_seconds": 0.0,
    "updates_accepted": 0, "updates_rejected": 0, "updates_failed": 0, "updates_declined": 0, "updates_expired": 0,
}  # fmt: skip


def ledger(client: httpx.Client, organization: Organization, **query: Any) -> dict[str, Any]:
    answer = client.get(f"/v1/organizations/{organization.id}/ledger", params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def too_large(instruction: Payload) -> Payload:
    return update_of(1e6, instruction)


@pytest.fixture
def clinic(rig: FederationRig) -> Organization:
    return rig.service.new_organization("Clinic")


def together(rig: FederationRig, clinic: Organization, **changes: Any) -> tuple[Actor, Actor]:
    """A running federation of a client of the owner's, with 10 examples, and one of the clinic's, with 20."""
    rig.create(min_clients=1, **changes)
    created(rig.owner.owner.post(rig.path("invitations"), json={"organization_id": clinic.id}))
    accept(clinic.owner, rig.federation_id).raise_for_status()
    own, theirs = rig.join(rig.actor()), rig.join(rig.actor(clinic, examples=20))
    rig.post("start")
    for actor in (own, theirs):
        assert actor.work() == "describe"
    rig.settle()
    return own, theirs


class TestSums:
    def test_they_are_those_of_a_federation_of_two_organizations(
        self, rig: FederationRig, clinic: Organization
    ) -> None:
        together(rig, clinic, rounds=3, evaluation={"every": 3})
        rig.play(3)
        assert rig.show()["state"] == "completed"
        for organization, examples in ((rig.owner, 10), (clinic, 20)):
            told = ledger(organization.owner, organization)
            (entry,) = told["items"]
            assert entry == told["total"] | {
                "federation_id": rig.federation_id, "federation_name": "messages", "deleted_at": None,
            }  # fmt: skip
            assert told["total"] == NOTHING | {
                "rounds": 3, "examples": 3 * examples, "updates_accepted": 3,
                "upload_bytes": 300, "download_bytes": 150, "training_seconds": 4.5,
            }  # fmt: skip

    def test_they_are_those_of_the_rounds(self, rig: FederationRig, clinic: Organization) -> None:
        together(rig, clinic, rounds=2)
        rig.play(2)
        both = [ledger(organization.owner, organization)["total"] for organization in (rig.owner, clinic)]
        rounds = rig.rounds()
        for name in ("upload_bytes", "download_bytes"):
            assert sum(total[name] for total in both) == sum(row[name] for row in rounds)
        assert sum(total["examples"] for total in both) == sum(row["metrics"]["examples"] for row in rounds)

    def test_refused_updates_are_counted_by_what_became_of_them(
        self, rig: FederationRig, clinic: Organization
    ) -> None:
        own, theirs = together(rig, clinic, rounds=3, max_update_norm=100.0)
        theirs.make_update = too_large
        rig.play(1)
        failed = own.lease()
        assert failed is not None
        body = {"boot_id": own.worker.boot_id, "code": "broken", "detail": "it broke", "transient": False}
        own.http.post(f"/v1/jobs/{failed['job_id']}/fail", json=body).raise_for_status()
        declined = theirs.lease()
        assert declined is not None
        body = {"boot_id": theirs.worker.boot_id, "code": "policy_rank", "detail": "at most 1"}
        theirs.http.post(f"/v1/jobs/{declined['job_id']}/decline", json=body).raise_for_status()
        assert ledger(own.organization.owner, own.organization)["total"] == NOTHING | {
            "rounds": 1, "examples": 10, "updates_accepted": 1, "updates_failed": 1,
            "upload_bytes": 100, "download_bytes": 50, "training_seconds": 1.5,
        }  # fmt: skip
        assert ledger(clinic.owner, clinic)["total"] == NOTHING | {
            "updates_rejected": 1, "updates_declined": 1,
            "upload_bytes": 100, "download_bytes": 50, "training_seconds": 1.5,
        }  # fmt: skip

    def test_two_clients_of_an_organization_take_part_in_the_same_round_once(self, rig: FederationRig) -> None:
        rig.running(rounds=1)
        rig.play(1)
        total = ledger(rig.owner.owner, rig.owner)["total"]
        assert (total["rounds"], total["updates_accepted"], total["examples"]) == (1, 2, 30)

    def test_who_registered_and_did_nothing_has_an_entry_of_zeros(self, rig: FederationRig) -> None:
        rig.create()
        rig.join(rig.actor())
        told = ledger(rig.owner.viewer, rig.owner)
        assert (told["total"], len(told["items"])) == (NOTHING, 1)


class TestDeletion:
    def test_what_was_done_stays_and_adds_up_with_what_is_done_since(
        self, rig: FederationRig, clinic: Organization
    ) -> None:
        together(rig, clinic, rounds=1)
        rig.play(1)
        first = rig.federation_id
        before = ledger(clinic.owner, clinic)
        assert rig.owner.owner.delete(rig.path()).status_code == 204
        with reading() as session:
            assert (session.query(Job).count(), session.query(Round).count()) == (0, 0)
            assert session.query(LedgerEntry).count() == 2
        after = ledger(clinic.owner, clinic)
        assert after["total"] == before["total"]
        assert after["items"][0].pop("deleted_at")
        assert after["items"][0] == {
            name: value for name, value in before["items"][0].items() if name != "deleted_at"
        }
        own, theirs = rig.actors
        rig.create(rounds=1)
        created(rig.owner.owner.post(rig.path("invitations"), json={"organization_id": clinic.id}))
        accept(clinic.owner, rig.federation_id).raise_for_status()
        for actor in (own, theirs):
            rig.join(actor)
        rig.post("start")
        rig.play(1)
        again = ledger(clinic.owner, clinic)
        assert {entry["federation_id"] for entry in again["items"]} == {first, rig.federation_id}
        assert again["total"] == {name: 2 * value for name, value in before["total"].items()}

    def test_a_draft_that_nobody_joined_leaves_nothing(self, rig: FederationRig) -> None:
        rig.create()
        assert rig.owner.owner.delete(rig.path()).status_code == 204
        assert ledger(rig.owner.owner, rig.owner) == {"items": [], "next_cursor": None, "total": NOTHING}


class TestReading:
    def test_all_keys_of_the_organization_may_and_no_others(self, rig: FederationRig, clinic: Organization) -> None:
        told = ledger(rig.service.admin, clinic)
        assert [ledger(key, clinic) for key in (clinic.owner, clinic.operator, clinic.viewer)] == [told] * 3
        path = f"/v1/organizations/{clinic.id}/ledger"
        problem(rig.owner.owner.get(path), 404, "not_found")
        problem(rig.service.admin.get("/v1/organizations/org_none/ledger"), 404, "not_found")

    def test_pages_are_of_federations_and_the_total_of_all(self, rig: FederationRig) -> None:
        actor = rig.actor()
        made = set()
        for _ in range(3):
            made.add(rig.create())
            rig.join(actor)
        first = ledger(rig.owner.owner, rig.owner, limit=2)
        second = ledger(rig.owner.owner, rig.owner, limit=2, cursor=first["next_cursor"])
        assert second["next_cursor"] is None
        assert {entry["federation_id"] for entry in first["items"] + second["items"]} == made
        path = f"/v1/organizations/{rig.owner.id}/ledger"
        problem(rig.owner.owner.get(path, params={"cursor": "x"}), 400, "cursor_invalid")


@pytest.mark.parametrize(
    ("fields", "code", "pointer"),
    [
        ({"upload_bytes": 2**46 + 1}, "too_many_bytes", "/upload_bytes"),
        ({"download_bytes": 2**50}, "too_many_bytes", "/download_bytes"),
        ({"seconds": {"training": -1.0}}, "seconds_out_of_range", "/seconds/training"),
        ({"seconds": {"training": 5e9}}, "seconds_out_of_range", "/seconds/training"),
    ],
)
def test_amounts_that_no_job_can_have_are_refused(
    rig: FederationRig, fields: dict[str, Any], code: str, pointer: str
) -> None:
    actor, _ = rig.running()
    lease = actor.lease()
    assert lease is not None
    found = problem(actor.submit(lease, **fields), 422, code)
    assert [error["pointer"] for error in found["errors"]] == [pointer]
