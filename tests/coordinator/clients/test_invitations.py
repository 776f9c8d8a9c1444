"""Invitations over HTTP: permissions, responses and errors."""

from dataclasses import dataclass

import httpx
import pytest

from coordinator.db.sessions import writing
from coordinator.queue.wakeups import ADVANCE_FEDERATION, ADVANCE_ROUND
from tests.coordinator.clients import scene
from tests.support.federation_rig import definition
from tests.support.queue import queued
from tests.support.service import Organization, Service, accept, created, problem


@dataclass
class Guests:
    """A running federation of `host`, and two organizations that may be invited."""

    host: Organization
    clinic: Organization
    bank: Organization
    federation_id: str

    def path(self, call: str) -> str:
        return f"/v1/federations/{self.federation_id}/{call}"

    def invite(self, organization: Organization) -> httpx.Response:
        return self.host.owner.post(self.path("invitations"), json={"organization_id": organization.id})


@pytest.fixture
def guests(service: Service) -> Guests:
    host, clinic, bank = (service.new_organization(name) for name in ("host", "clinic", "bank"))
    with writing() as session:
        federation_id = scene.federation(session, host.id).id
    return Guests(host, clinic, bank, federation_id)


class TestInvite:
    def test_an_invited_organization_learns_what_will_leave_its_site(self, guests: Guests) -> None:
        created(guests.invite(guests.clinic))
        (invitation,) = guests.clinic.viewer.get("/v1/invitations").json()["items"]
        assert invitation["state"] == "invited"
        assert invitation["owner_organization_name"] == "host"
        assert (invitation["algorithm"], invitation["rounds"]) == ("fedavg", 3)
        terms = ("columns", "how_often", "how_long", "leaves_your_site", "stays_at_your_site")
        assert all(invitation[name] for name in terms)
        assert (invitation["columns"], invitation["agreed_digest"]) == (["text", "text_pair", "label"], None)
        assert "LoRA factors (r=2) of query, value" in invitation["leaves_your_site"][0]

    def test_one_that_is_invited_already_is_not_invited_twice(self, guests: Guests) -> None:
        created(guests.invite(guests.clinic))
        before = scene.everything()
        problem(guests.invite(guests.clinic), 409, "illegal_transition")
        assert scene.everything() == before

    def test_one_that_declined_may_be_invited_again(self, guests: Guests) -> None:
        created(guests.invite(guests.clinic))
        guests.clinic.owner.post(guests.path("decline"), json={"reason": "not now"}).raise_for_status()
        assert created(guests.invite(guests.clinic))["reason"] is None

    def test_an_unknown_organization_is_refused_by_its_field(self, guests: Guests) -> None:
        before = scene.everything()
        answer = guests.host.owner.post(guests.path("invitations"), json={"organization_id": "org_nobody"})
        assert problem(answer, 422, "organization_unknown")["errors"][0]["pointer"] == "/organization_id"
        assert scene.everything() == before

    def test_only_the_owner_invites(self, guests: Guests) -> None:
        created(guests.invite(guests.clinic))
        before = scene.everything()
        body = {"organization_id": guests.bank.id}
        problem(guests.clinic.owner.post(guests.path("invitations"), json=body), 403, "not_the_owner")
        problem(guests.host.viewer.post(guests.path("invitations"), json=body), 403, "role_too_small")
        problem(guests.bank.owner.post(guests.path("invitations"), json=body), 404, "federation_unknown")
        assert scene.everything() == before


class TestAnswer:
    def test_an_organization_accepts_and_its_own_invitation_is_all_it_sees(self, guests: Guests) -> None:
        for organization in (guests.clinic, guests.bank):
            created(guests.invite(organization))
        answer = accept(guests.clinic.operator, guests.federation_id)
        assert (answer.status_code, answer.json()["state"]) == (200, "accepted")
        seen = {
            organization.name: sorted(
                (row["organization_name"], row["state"])
                for row in organization.viewer.get(guests.path("invitations")).json()["items"]
            )
            for organization in (guests.host, guests.clinic)
        }
        assert seen == {
            "host": [("bank", "invited"), ("clinic", "accepted"), ("host", "accepted")],
            "clinic": [("clinic", "accepted")],
        }

    def test_one_that_was_not_invited_sees_nothing_and_changes_nothing(self, guests: Guests) -> None:
        before = scene.everything()
        for call in ("accept", "decline", "leave"):
            problem(guests.clinic.owner.post(guests.path(call)), 404, "federation_unknown")
        for call in ("invitations", "clients"):
            problem(guests.clinic.owner.get(guests.path(call)), 404, "federation_unknown")
        assert guests.clinic.owner.get("/v1/invitations").json()["items"] == []
        assert scene.everything() == before

    def test_a_viewer_answers_nothing(self, guests: Guests) -> None:
        created(guests.invite(guests.clinic))
        problem(guests.clinic.viewer.post(guests.path("accept")), 403, "role_too_small")

    def test_an_admin_speaks_for_no_organization(self, service: Service, guests: Guests) -> None:
        problem(service.admin.post(guests.path("accept")), 403, "organization_needed")

    def test_one_that_declined_does_not_see_the_federation_any_more(self, guests: Guests) -> None:
        created(guests.invite(guests.clinic))
        answer = guests.clinic.owner.post(guests.path("decline"), json={"reason": "no consent"}).json()
        assert (answer["state"], answer["reason"]) == ("declined", "no consent")
        problem(guests.clinic.owner.get(guests.path("clients")), 404, "federation_unknown")

    def test_nobody_joins_a_federation_that_has_ended(self, guests: Guests) -> None:
        created(guests.invite(guests.clinic))
        with writing() as session:
            scene.get_federation(session, guests.federation_id).state = "completed"
        problem(guests.clinic.owner.post(guests.path("accept")), 409, "federation_ended")
        problem(guests.invite(guests.bank), 409, "federation_ended")

    def test_an_unknown_field_of_a_reason_is_refused(self, guests: Guests) -> None:
        created(guests.invite(guests.clinic))
        answer = guests.clinic.owner.post(guests.path("decline"), json={"because": "no"})
        assert [error["pointer"] for error in problem(answer, 422, "request_invalid")["errors"]] == ["/because"]


def test_an_organization_that_leaves_takes_all_its_clients_with_it(service: Service, guests: Guests) -> None:
    workers = [service.new_worker(guests.clinic, name, scene.CAPABILITIES) for name in ("one", "two")]
    created(guests.invite(guests.clinic))
    accept(guests.clinic.owner, guests.federation_id).raise_for_status()
    for worker in workers:
        body = {"worker_id": worker.id, "dataset": "tickets"}
        created(guests.clinic.owner.post(guests.path("clients"), json=body))
    with writing() as session:
        round_id = scene.open_round(session, scene.get_federation(session, guests.federation_id)).id
    answer = guests.clinic.owner.post(guests.path("leave"), json={"reason": "moving"})
    assert (answer.status_code, answer.json()["state"]) == (200, "left")
    rows = guests.host.owner.get(guests.path("clients")).json()["items"]
    assert [(row["ordinal"], row["state"], row["reason_detail"]) for row in rows] == [
        (0, "left", "moving"),
        (1, "left", "moving"),
    ]
    assert scene.events_of(guests.federation_id) == [
        "organization.invited",
        "organization.accepted",
        "client.registered",
        "client.registered",
        "organization.left",
        "client.left",
        "client.left",
    ]
    assert queued(ADVANCE_FEDERATION)[-1] == [guests.federation_id]
    assert queued(ADVANCE_ROUND) == [[round_id]]


class TestRemoval:
    def test_an_invitation_that_was_taken_back_shows_nothing_any_more(self, service: Service) -> None:
        host, guest, federation_id = invited(service)
        path = f"/v1/federations/{federation_id}"
        assert guest.owner.get(path).status_code == 200
        assert host.owner.delete(f"{path}/invitations/{guest.id}").status_code == 204
        assert {guest.owner.get(f"{path}{part}").status_code for part in ("", "/events", "/rounds", "/clients")} == {
            404
        }
        agreed = {"definition_digest": "sha256:" + "0" * 64}
        problem(guest.owner.post(f"{path}/accept", json=agreed), 404, "federation_unknown")
        again = created(host.owner.post(f"{path}/invitations", json={"organization_id": guest.id}))
        assert again["state"] == "invited"
        assert accept(guest.owner, federation_id).status_code == 200

    def test_who_takes_part_is_put_out_with_all_clients(self, service: Service) -> None:
        host, guest, federation_id = invited(service)
        path = f"/v1/federations/{federation_id}"
        accept(guest.owner, federation_id).raise_for_status()
        worker = service.new_worker(guest, "gpu", scene.CAPABILITIES)
        client = created(guest.owner.post(f"{path}/clients", json={"worker_id": worker.id, "dataset": "tickets"}))
        assert host.owner.delete(f"{path}/invitations/{guest.id}").status_code == 204
        (shown,) = host.owner.get(f"{path}/clients").json()["items"]
        assert (shown["id"], shown["state"], shown["reason_detail"]) == (client["id"], "left", "removed")
        assert guest.owner.get(path).status_code == 404
        types = [event["type"] for event in host.owner.get(f"{path}/events").json()["items"]]
        assert types[-2:] == ["organization.removed", "client.left"]

    def test_the_owner_itself_and_strangers_are_not_removed(self, service: Service) -> None:
        host, guest, federation_id = invited(service)
        path = f"/v1/federations/{federation_id}/invitations"
        problem(host.owner.delete(f"{path}/{host.id}"), 409, "owner_takes_part")
        problem(host.owner.delete(f"{path}/org_nobody"), 404, "invitation_unknown")
        problem(guest.owner.delete(f"{path}/{guest.id}"), 403, "not_the_owner")


def invited(service: Service) -> tuple[Organization, Organization, str]:
    """A draft of one organization to which another is invited."""
    host, guest = service.new_organization("host"), service.new_organization("guest")
    federation_id = str(created(host.owner.post("/v1/federations", json=definition()))["id"])
    path = f"/v1/federations/{federation_id}/invitations"
    created(host.owner.post(path, json={"organization_id": guest.id}))
    return host, guest, federation_id
