"""Webhook deliveries to a real receiver: retries, and messages only for permitted organizations."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from coordinator.db.sessions import reading, utcnow, writing
from coordinator.models import Delivery
from coordinator.queue.wakeups import celery
from coordinator.settings import get_settings
from coordinator.webhooks import service as webhooks
from tests.support.federation_rig import FederationRig
from tests.support.logged import logged
from tests.support.receiver import Receiver, receiving
from tests.support.service import Organization, accept, created, problem

pytestmark = pytest.mark.usefixtures("local_receivers")


@contextmanager
def setting(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv(f"FEDLOOM_{name}", str(value))
        get_settings.cache_clear()
        yield
    get_settings.cache_clear()


class Hook:
    """A webhook of an organization."""

    def __init__(self, organization: Organization, url: str, *events: str) -> None:
        self.owner = organization.owner
        root = f"/v1/organizations/{organization.id}/webhooks"
        body = {"url": url, "events": list(events or ["*"])}
        made = created(self.owner.post(root, json=body))
        self.id, self.secret, self.path = made["id"], made["secret"], f"{root}/{made['id']}"

    def deliveries(self, **query: str) -> list[dict[str, Any]]:
        answer = self.owner.get(f"{self.path}/deliveries", params=query)
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["items"]
        return found

    def redeliver(self, delivery_id: str) -> dict[str, Any]:
        answer = self.owner.post(f"{self.path}/deliveries/{delivery_id}/redeliver")
        assert answer.status_code == 202, answer.text
        shown = self.owner.get(answer.headers["location"])
        assert shown.json() == answer.json()
        return dict(shown.json())


def told(receiver: Receiver) -> list[str]:
    return [json.loads(message.body)["type"] for message in receiver.messages]


class TestDelivery:
    def test_a_receiver_that_fails_twice_gets_the_same_message_a_third_time(
        self, rig: FederationRig, receiver: Receiver
    ) -> None:
        hook = Hook(rig.owner, receiver.url + "/fedloom?for=us", "federation.created")
        receiver.answers = [500, 404]
        rig.create()
        rig.settle()
        assert [message.path for message in receiver.messages] == ["/fedloom?for=us"] * 3
        (delivery,) = hook.deliveries()
        assert (delivery["state"], delivery["attempts"], delivery["last_status"]) == ("delivered", 3, 204)
        assert (delivery["last_error"], delivery["next_attempt_at"]) == (None, None)
        assert delivery["ended_at"] >= delivery["created_at"]
        assert len({message.body for message in receiver.messages}) == 1
        message = receiver.messages[2]
        (event,) = rig.get("events")["items"]
        assert json.loads(message.body) == event | {
            "id": delivery["id"], "webhook_id": hook.id, "federation_id": rig.federation_id,
        }  # fmt: skip
        assert message.headers["Content-Type"] == "application/json"
        assert (message.headers["Fedloom-Delivery"], message.headers["Fedloom-Event"]) == (
            delivery["id"], "federation.created",
        )  # fmt: skip

    def test_every_attempt_is_in_the_log(self, rig: FederationRig, receiver: Receiver) -> None:
        hook = Hook(rig.owner, receiver.url, "federation.created")
        receiver.answers = [500]
        with logged() as lines:
            rig.create()
            rig.settle()
        told = [line for line in lines() if "delivery_id" in line]
        assert [line["event"] for line in told] == ["webhook_not_delivered", "webhook_delivered"]
        assert (told[0]["reason"], told[1]["status"]) == ("answered 500", 204)
        about = {"webhook_id": hook.id, "federation_id": rig.federation_id, "type": "federation.created"}
        assert all(about.items() <= line.items() for line in told)

    def test_all_events_of_a_federation_come_in_order_and_none_twice(
        self, rig: FederationRig, receiver: Receiver
    ) -> None:
        Hook(rig.owner, receiver.url)
        rig.running(rounds=1)
        rig.play(1)
        rig.settle()
        numbers = [json.loads(message.body)["number"] for message in receiver.messages]
        assert told(receiver) == rig.events()
        assert numbers == [event["number"] for event in rig.get("events")["items"]]

    def test_only_what_was_asked_for_comes(self, rig: FederationRig, receiver: Receiver) -> None:
        Hook(rig.owner, receiver.url, "round.closed", "organization.*")
        created_ = rig.service.new_organization("Clinic")
        rig.running(rounds=1)
        created(rig.owner.owner.post(rig.path("invitations"), json={"organization_id": created_.id}))
        rig.play(1)
        assert told(receiver) == ["organization.invited", "round.closed"]

    def test_a_message_that_is_lost_is_sent_by_the_reconciler(self, rig: FederationRig, receiver: Receiver) -> None:
        Hook(rig.owner, receiver.url, "federation.created")
        rig.create()
        assert rig.drop_messages() == 1
        assert receiver.messages == []
        rig.reconcile()
        assert told(receiver) == ["federation.created"]

    def test_it_survives_the_federation_it_tells_of(self, rig: FederationRig, receiver: Receiver) -> None:
        Hook(rig.owner, receiver.url, "federation.created")
        rig.create()
        rig.owner.owner.delete(rig.path()).raise_for_status()
        rig.settle()
        assert told(receiver) == ["federation.created"]


class TestWhoIsTold:
    def test_those_who_may_read_the_events_while_they_may(self, rig: FederationRig, receiver: Receiver) -> None:
        clinic, other = (rig.service.new_organization(name) for name in ("Clinic", "Other"))
        Hook(clinic, receiver.url)
        Hook(other, receiver.url)
        rig.create()
        created(rig.owner.owner.post(rig.path("invitations"), json={"organization_id": clinic.id}))
        accept(clinic.owner, rig.federation_id).raise_for_status()
        clinic.owner.post(rig.path("leave")).raise_for_status()
        rig.owner.owner.post(rig.path("cancel")).raise_for_status()
        rig.settle()
        assert told(receiver) == ["organization.invited", "organization.accepted"]

    def test_nobody_of_what_was_rolled_back(self, rig: FederationRig, receiver: Receiver) -> None:
        hook = Hook(rig.owner, receiver.url)
        answer = rig.owner.owner.post("/v1/federations", json={"name": "half a federation"})
        assert answer.status_code == 422
        rig.settle()
        assert hook.deliveries() == []


class TestFailure:
    def test_what_fails_too_long_is_given_up_and_can_be_sent_again(
        self, rig: FederationRig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with setting(monkeypatch, "WEBHOOK_GIVE_UP_SECONDS", 0.000001):
            hook = Hook(rig.owner, receiver.url, "federation.created")
            receiver.answers = [503]
            rig.create()
            rig.settle()
        (failed,) = hook.deliveries(state="failed")
        assert (failed["attempts"], failed["last_status"], failed["last_error"]) == (1, 503, "answered 503")
        assert failed["next_attempt_at"] is None
        again = hook.redeliver(failed["id"])
        assert (again["state"], again["attempts"]) == ("pending", 0)
        rig.settle()
        (delivered,) = hook.deliveries()
        assert (delivered["id"], delivered["state"]) == (failed["id"], "delivered")
        assert receiver.messages[0].body == receiver.messages[1].body

    def test_a_failed_connection_keeps_the_others_back_for_a_while(
        self, rig: FederationRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with setting(monkeypatch, "WEBHOOK_RETRY_SECONDS", 3600), receiving() as gone:
            hook = Hook(rig.owner, gone.url, "federation.created", "federation.cancelled")
        with setting(monkeypatch, "WEBHOOK_RETRY_SECONDS", 3600):
            rig.create()
            rig.settle()
            rig.owner.owner.post(rig.path("cancel")).raise_for_status()
            rig.settle()
        first, second = hook.deliveries(state="pending")
        assert (first["attempts"], second["attempts"], first["last_status"]) == (1, 0, None)
        assert "refused" in first["last_error"]
        paused = hook.owner.get(hook.path).json()["paused_until"]
        assert second["next_attempt_at"] < paused < first["next_attempt_at"]
        with reading() as session:
            assert webhooks.due(session, utcnow()) == []
            assert webhooks.due(session, utcnow() + timedelta(seconds=61)) == [(rig.owner.id, hook.id)]

    def test_a_receiver_that_does_not_answer_is_left(
        self, rig: FederationRig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        receiver.hangs = True
        hook = Hook(rig.owner, receiver.url, "federation.created")
        with setting(monkeypatch, "WEBHOOK_TIMEOUT_SECONDS", 0.2), setting(monkeypatch, "WEBHOOK_RETRY_SECONDS", 60):
            rig.create()
            rig.settle()
        (pending,) = hook.deliveries()
        assert (pending["state"], pending["attempts"], pending["last_status"]) == ("pending", 1, None)
        assert pending["last_error"] == "not answered in time"

    def test_a_redirect_is_not_followed(self, rig: FederationRig, receiver: Receiver) -> None:
        receiver.answers = [307]
        Hook(rig.owner, receiver.url + "/here", "federation.created")
        rig.create()
        rig.settle()
        assert [message.path for message in receiver.messages] == ["/here", "/here"]

    def test_an_address_is_looked_at_when_it_is_sent_to(
        self, rig: FederationRig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hook = Hook(rig.owner, receiver.url.replace("127.0.0.1", "localhost"), "federation.created")
        with setting(monkeypatch, "WEBHOOK_PRIVATE_ADDRESSES", "false"):
            with setting(monkeypatch, "WEBHOOK_RETRY_SECONDS", 60):
                rig.create()
                rig.settle()
        (pending,) = hook.deliveries()
        assert receiver.messages == []
        assert "is not public" in pending["last_error"]

    def test_a_deleted_webhook_gets_nothing(self, rig: FederationRig, receiver: Receiver) -> None:
        hook = Hook(rig.owner, receiver.url)
        rig.create()
        hook.owner.delete(hook.path).raise_for_status()
        rig.settle()
        assert receiver.messages == []
        problem(hook.owner.get(f"{hook.path}/deliveries"), 404, "not_found")


class TestClaims:
    def test_two_tasks_do_not_send_at_once_and_a_dead_ones_message_is_sent_again(
        self, rig: FederationRig, receiver: Receiver
    ) -> None:
        hook = Hook(rig.owner, receiver.url, "federation.created")
        rig.create()
        now = utcnow()
        with writing() as session:
            claimed = webhooks.claim(session, hook.id, now)
        assert claimed is not None
        rig.settle()
        assert receiver.messages == []
        with reading() as session:
            assert webhooks.due(session, now) == []
        with writing() as session:
            taken = webhooks.claim(session, hook.id, claimed.until)
        assert taken is not None
        assert (taken.headers["Fedloom-Delivery"], taken.body) == (claimed.headers["Fedloom-Delivery"], claimed.body)
        with writing() as session:  # the dead one was only slow
            webhooks.record(session, claimed, webhooks.Outcome(204, None), now, 1.0)
        assert [delivery["state"] for delivery in hook.deliveries()] == ["pending"]

    def test_old_deliveries_are_forgotten_and_pending_ones_not(self, rig: FederationRig, receiver: Receiver) -> None:
        hook = Hook(rig.owner, receiver.url, "federation.created")
        for _ in range(3):
            rig.create()
            rig.settle()
        old = utcnow() - timedelta(days=31)
        with writing() as session:
            first, second, _ = session.scalars(select(Delivery).order_by(Delivery.number))
            first.ended_at, second.state, second.created_at = old, "pending", old
        celery.tasks["webhooks.forget"]()
        assert [delivery["state"] for delivery in hook.deliveries()] == ["pending", "delivered"]
