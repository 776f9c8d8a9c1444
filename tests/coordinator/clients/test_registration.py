"""Registration of data sets over HTTP: checks of worker and data set, and the ordinal."""

from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from coordinator.clients import service as clients
from coordinator.db.sessions import writing
from coordinator.models import Client
from coordinator.queue.wakeups import ADVANCE_FEDERATION
from tests.coordinator.clients import scene
from tests.support.queue import queued
from tests.support.service import EnrolledWorker, Organization, Service, created, problem


@dataclass
class Members:
    """A federation of `host` in which `clinic` takes part, and a worker of each."""

    host: Organization
    clinic: Organization
    host_worker: EnrolledWorker
    worker: EnrolledWorker
    federation_id: str

    @property
    def path(self) -> str:
        return f"/v1/federations/{self.federation_id}/clients"

    def register(self, worker: EnrolledWorker | None = None, **fields: Any) -> httpx.Response:
        body = {"worker_id": (worker or self.worker).id, "dataset": "tickets"} | fields
        return self.clinic.operator.post(self.path, json=body)

    def set_state(self, state: str) -> None:
        with writing() as session:
            scene.get_federation(session, self.federation_id).state = state


@pytest.fixture
def members(service: Service) -> Members:
    host, clinic = service.new_organization("host"), service.new_organization("clinic")
    workers = [service.new_worker(owner, "gpu", scene.CAPABILITIES) for owner in (host, clinic)]
    with writing() as session:
        federation = scene.federation(session, host.id, "draft")
        scene.member(session, federation, clinic.id)
    return Members(host, clinic, workers[0], workers[1], federation.id)


def refused(answer: httpx.Response, code: str, pointer: str) -> None:
    assert [error["pointer"] for error in problem(answer, 422, code)["errors"]] == [pointer]


class TestRegister:
    def test_places_are_given_in_the_order_of_registration(self, members: Members) -> None:
        first = created(members.register(name="left ward"))
        body = {"worker_id": members.host_worker.id, "dataset": "tickets", "evaluates_only": True}
        second = created(members.host.owner.post(members.path, json=body))
        assert (first["ordinal"], first["state"], first["name"]) == (0, "registered", "left ward")
        assert (second["ordinal"], second["evaluates_only"], second["name"]) == (1, True, "gpu tickets")

    @pytest.mark.parametrize(("state", "woken"), [("draft", False), ("paused", False), ("running", True)])
    def test_a_late_joiner_wakes_a_running_federation(self, members: Members, state: str, woken: bool) -> None:
        members.set_state(state)
        created(members.register())
        assert queued(ADVANCE_FEDERATION) == ([[members.federation_id]] if woken else [])

    def test_a_federation_that_has_ended_takes_nobody(self, members: Members) -> None:
        members.set_state("completed")
        problem(members.register(), 409, "federation_ended")

    def test_a_worker_of_another_organization_is_refused_like_one_that_does_not_exist(self, members: Members) -> None:
        before = scene.everything()
        foreign = problem(members.register(members.host_worker), 404, "worker_unknown")
        absent = problem(members.register(worker_id="wkr_nobody"), 404, "worker_unknown")
        assert foreign["detail"].replace(members.host_worker.id, "…") == absent["detail"].replace("wkr_nobody", "…")
        assert scene.everything() == before

    def test_an_organization_that_has_not_accepted_is_refused(self, service: Service, members: Members) -> None:
        bank = service.new_organization("bank")
        worker = service.new_worker(bank, "gpu", scene.CAPABILITIES)
        with writing() as session:
            scene.member(session, scene.get_federation(session, members.federation_id), bank.id, "invited")
        before = scene.everything()
        body = {"worker_id": worker.id, "dataset": "tickets"}
        problem(bank.owner.post(members.path, json=body), 409, "invitation_not_accepted")
        assert scene.everything() == before

    def test_a_key_of_an_organization_outside_finds_nothing(self, service: Service, members: Members) -> None:
        bank = service.new_organization("bank")
        worker = service.new_worker(bank, "gpu", scene.CAPABILITIES)
        before = scene.everything()
        body = {"worker_id": worker.id, "dataset": "tickets"}
        problem(bank.owner.post(members.path, json=body), 404, "federation_unknown")
        assert scene.everything() == before

    def test_a_data_set_that_the_worker_does_not_offer_is_refused_by_its_field(self, members: Members) -> None:
        before = scene.everything()
        refused(members.register(dataset="letters"), "dataset_unknown", "/dataset")
        refused(members.register(dataset="notes"), "dataset_task", "/dataset")
        assert scene.everything() == before

    def test_settings_that_the_algorithm_refuses_are_refused_by_their_field(self, members: Members) -> None:
        before = scene.everything()
        refused(members.register(settings={"rank": 4}), "settings_refused", "/settings")
        assert scene.everything() == before

    def test_an_unknown_field_is_refused_by_name(self, members: Members) -> None:
        refused(members.register(weight=2), "request_invalid", "/weight")

    def test_a_revoked_worker_is_refused(self, members: Members) -> None:
        members.clinic.owner.delete(f"/v1/workers/{members.worker.id}").raise_for_status()
        problem(members.register(), 409, "worker_revoked")

    def test_a_data_set_registers_once(self, members: Members) -> None:
        client = created(members.register())
        before = scene.everything()
        assert client["id"] in problem(members.register(), 409, "client_exists")["detail"]
        assert scene.everything() == before

    def test_one_that_left_takes_its_old_place_again(self, members: Members) -> None:
        client = created(members.register())
        members.clinic.owner.post(f"/v1/clients/{client['id']}/leave").raise_for_status()
        again = created(members.register())
        assert (again["id"], again["ordinal"], again["state"]) == (client["id"], 0, "registered")

    def test_a_viewer_registers_nothing(self, members: Members) -> None:
        body = {"worker_id": members.worker.id, "dataset": "tickets"}
        problem(members.clinic.viewer.post(members.path, json=body), 403, "role_too_small")

    def test_a_worker_registers_nothing(self, members: Members) -> None:
        body = {"worker_id": members.worker.id, "dataset": "tickets"}
        problem(members.worker.http.post(members.path, json=body), 403, "api_key_needed")


class TestShow:
    def test_the_owner_sees_all_clients_and_others_their_own(self, service: Service, members: Members) -> None:
        body = {"worker_id": members.host_worker.id, "dataset": "tickets"}
        theirs, ours = created(members.host.owner.post(members.path, json=body)), created(members.register())

        def seen(key: httpx.Client) -> list[int]:
            return [row["ordinal"] for row in key.get(members.path).json()["items"]]

        assert (seen(members.host.viewer), seen(members.clinic.viewer), seen(service.admin)) == ([0, 1], [1], [0, 1])
        assert members.host.viewer.get(f"/v1/clients/{ours['id']}").json() == ours
        problem(members.clinic.owner.get(f"/v1/clients/{theirs['id']}"), 404, "client_unknown")

    def test_pages_follow_the_ordinals(self, service: Service, members: Members) -> None:
        with writing() as session:
            federation = scene.get_federation(session, members.federation_id)
            owner = scene.organization(session, "many")
            for _ in range(12):
                scene.client(session, federation, scene.worker(session, owner))
        found: list[int] = []
        url = f"{members.path}?limit=5"
        while url:
            answer = members.host.owner.get(url)
            found += [row["ordinal"] for row in answer.json()["items"]]
            url = answer.links.get("next", {}).get("url", "")
        assert found == list(range(12))

    def test_a_cursor_of_another_list_is_refused(self, members: Members) -> None:
        problem(members.host.owner.get(members.path, params={"cursor": "b3JnXzAwMA"}), 400, "cursor_invalid")


class TestChange:
    def test_only_its_organization_may_take_a_client_away(self, service: Service, members: Members) -> None:
        path = f"/v1/clients/{created(members.register())['id']}"
        bank = service.new_organization("bank")
        before = scene.everything()
        problem(members.host.owner.post(f"{path}/leave"), 403, "client_of_another")
        problem(bank.owner.post(f"{path}/leave"), 404, "client_unknown")
        assert scene.everything() == before
        assert members.clinic.owner.post(f"{path}/leave").json()["state"] == "left"

    def test_a_client_that_is_out_comes_back_to_be_described_again(self, members: Members) -> None:
        members.set_state("running")
        client_id = created(members.register())["id"]
        with writing() as session:
            clients.take_out(session, session.get_one(Client, client_id), "policy_rank", "at most rank 1 here")
        shown = members.host.owner.get(f"/v1/clients/{client_id}").json()
        assert (shown["state"], shown["reason"], shown["reason_detail"]) == (
            "out", "policy_rank", "at most rank 1 here",
        )  # fmt: skip
        restored = members.clinic.owner.post(f"/v1/clients/{client_id}/restore").json()
        assert (restored["state"], restored["reason"]) == ("registered", None)
        assert scene.events_of(members.federation_id) == ["client.registered", "client.out", "client.restored"]

    def test_a_client_that_is_not_out_is_not_restored(self, members: Members) -> None:
        client_id = created(members.register())["id"]
        problem(members.clinic.owner.post(f"/v1/clients/{client_id}/restore"), 409, "illegal_transition")


class TestExpulsion:
    def test_a_client_is_put_out_by_the_federations_owner_and_let_in_by_nobody_else(self, members: Members) -> None:
        client = created(members.register())
        path = f"/v1/clients/{client['id']}"
        problem(members.clinic.owner.post(f"{path}/expel"), 403, "not_the_owner")
        expelled = members.host.owner.post(f"{path}/expel", json={"reason": "its updates harm"}).json()
        assert (expelled["state"], expelled["reason"], expelled["reason_detail"]) == (
            "expelled",
            "expelled",
            "its updates harm",
        )
        assert queued(ADVANCE_FEDERATION) == [[members.federation_id]]
        problem(members.clinic.owner.post(f"{path}/restore"), 409, "illegal_transition")
        problem(members.clinic.owner.post(f"{path}/leave"), 409, "illegal_transition")
        problem(members.register(), 409, "client_exists")
        problem(members.clinic.owner.post(f"{path}/readmit"), 403, "not_the_owner")
        assert members.host.owner.post(f"{path}/readmit").json()["state"] == "registered"
