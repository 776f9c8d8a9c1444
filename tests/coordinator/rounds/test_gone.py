"""Clients that leave while a round collects: their jobs are withdrawn, and the others go on without them."""

from collections.abc import Callable

import httpx
import pytest
from sqlalchemy import select

from coordinator.db.sessions import reading, utcnow, writing
from coordinator.models import Client, Job, Worker
from tests.support.federation_rig import Actor, FederationRig
from tests.support.service import accept, created, problem

Going = Callable[[FederationRig, Actor], httpx.Response]


def of_client(action: str) -> Going:
    return lambda rig, actor: actor.organization.owner.post(f"/v1/clients/{actor.client_id}/{action}")


def revoke(rig: FederationRig, actor: Actor) -> httpx.Response:
    return actor.organization.operator.delete(f"/v1/workers/{actor.worker.id}")


WAYS: dict[str, tuple[Going, str, str | None]] = {
    "its worker is revoked": (revoke, "out", "worker_revoked"),
    "it leaves": (of_client("leave"), "left", "left"),
    "its organization leaves": (
        lambda rig, actor: actor.organization.owner.post(rig.path("leave")), "left", "left",
    ),
    "its organization is removed": (
        lambda rig, actor: rig.owner.operator.delete(rig.path("invitations", actor.organization.id)),
        "left", "left",
    ),
    "it is expelled": (
        lambda rig, actor: rig.owner.owner.post(f"/v1/clients/{actor.client_id}/expel"), "expelled", "expelled",
    ),
}  # fmt: skip
"""What happens -> how, and the client's state and reason afterwards."""


def collecting(rig: FederationRig, **changes: int) -> tuple[Actor, Actor]:
    """The owner's client has handed in, a guest's client trains."""
    rig.create(rounds=1, **changes)
    clinic = rig.service.new_organization("clinic")
    created(rig.owner.owner.post(rig.path("invitations"), json={"organization_id": clinic.id}))
    accept(clinic.owner, rig.federation_id).raise_for_status()
    own, guest = rig.join(rig.actor()), rig.join(rig.actor(clinic))
    rig.post("start")
    assert [actor.work() for actor in (own, guest)] == ["describe", "describe"]
    rig.settle()
    assert own.work() == "train"
    assert guest.lease() is not None
    rig.settle()
    assert str(rig.show()["waiting_for"]).startswith("collecting 1/2, 1 training")
    return own, guest


def client_of(actor: Actor) -> tuple[str, str | None]:
    with reading() as session:
        client = session.get_one(Client, actor.client_id)
    return client.state, client.reason


def train_jobs(actor: Actor) -> list[tuple[str, str]]:
    """State and code of the problem of each."""
    statement = select(Job).where(Job.client_id == actor.client_id, Job.kind == "train")
    with reading() as session:
        return [(job.state, (job.problem or {}).get("code", "")) for job in session.scalars(statement)]


class TestARoundThatCollects:
    @pytest.mark.parametrize("way", WAYS)
    def test_it_is_closed_at_once_by_those_who_remain(self, rig: FederationRig, way: str) -> None:
        going, state, reason = WAYS[way]
        _, guest = collecting(rig, min_clients=1)
        assert going(rig, guest).is_success
        rig.settle()  # what was woken, and not the reconciler
        closed = rig.get("rounds", "1")
        assert (closed["state"], closed["accepted"], closed["not_reproducible"]) == ("closed", [0], ["client_lost"])
        assert closed["reason_detail"] == "without the clients 1"
        assert train_jobs(guest) == [("withdrawn", "client_gone")]
        assert client_of(guest) == (state, reason)
        assert rig.show()["state"] == "completed"

    @pytest.mark.parametrize("way", WAYS)
    def test_the_reconciler_finds_it_if_every_message_is_lost(self, rig: FederationRig, way: str) -> None:
        _, guest = collecting(rig, min_clients=1)
        assert WAYS[way][0](rig, guest).is_success
        rig.drop_messages()
        rig.reconcile()
        assert rig.get("rounds", "1")["state"] == "closed"

    def test_without_a_quorum_it_says_for_whom_it_waits(self, rig: FederationRig) -> None:
        _, guest = collecting(rig, min_clients=2)
        assert revoke(rig, guest).is_success
        rig.settle()
        first, again = rig.rounds()
        assert (first["state"], first["reason"]) == ("withdrawn", "quorum_missed")
        assert "client 1: withdrawn" in first["reason_detail"]
        assert again["accepted"] == [0]
        assert str(rig.show()["waiting_for"]).startswith("waiting_for_clients 1/2, ")


class TestARevokedWorker:
    def test_its_jobs_and_clients_go_in_the_transaction_that_revokes_it(self, rig: FederationRig) -> None:
        _, guest = collecting(rig, min_clients=1)
        assert revoke(rig, guest).is_success
        assert (train_jobs(guest), client_of(guest)) == ([("withdrawn", "client_gone")], ("out", "worker_revoked"))
        shown = guest.organization.viewer.get(f"/v1/clients/{guest.client_id}").json()
        assert shown["reason_detail"] == "The worker was revoked: register a data set of another one."
        assert revoke(rig, guest).is_success
        assert rig.events().count("client.out") == 1

    def test_it_goes_from_a_draft_and_stays_on_the_record_of_what_has_ended(self, rig: FederationRig) -> None:
        rig.create(rounds=1)
        actor = rig.join(rig.actor())
        rig.post("cancel")
        ended = actor.client_id
        rig.create(rounds=1)
        rig.join(actor)
        assert revoke(rig, actor).is_success
        with reading() as session:
            states = [session.get_one(Client, client_id).state for client_id in (ended, actor.client_id)]
        assert states == ["registered", "out"]

    @pytest.mark.parametrize("action", ["restore", "readmit"])
    def test_its_client_does_not_come_back(self, rig: FederationRig, action: str) -> None:
        rig.create()
        actor = rig.join(rig.actor())
        if action == "readmit":
            assert of_client("expel")(rig, actor).is_success
        assert revoke(rig, actor).is_success
        problem(of_client(action)(rig, actor), 409, "worker_revoked")

    def test_one_that_an_earlier_version_revoked_is_found_by_the_reconciler(self, rig: FederationRig) -> None:
        _, guest = collecting(rig, min_clients=1)
        with writing() as session:
            session.get_one(Worker, guest.worker.id).revoked_at = utcnow()
        rig.reconcile()
        assert client_of(guest) == ("out", "worker_revoked")
        assert rig.get("rounds", "1")["state"] == "closed"
