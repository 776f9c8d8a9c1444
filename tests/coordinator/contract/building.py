"""Makes a world, over HTTP wherever there is a call for it."""

from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from coordinator.clients import service as clients
from coordinator.db.sessions import utcnow, writing
from coordinator.models import Client
from coordinator.operations import heartbeats
from tests.coordinator.clients.scene import digest_of
from tests.coordinator.contract.world import CHUNK, Token, World
from tests.support.federation_rig import CAPABILITIES, DATASET, Actor, FederationRig
from tests.support.service import EnrolledWorker, Identity, accept, created, key_of


class Builder:
    """Three organizations: home has a federation that runs, a draft, one that rests and one that has ended."""

    def __init__(self, rig: FederationRig) -> None:
        self.rig, self.service, self.home = rig, rig.service, rig.owner
        self.member = self.service.new_organization("member")
        self.stranger = self.service.new_organization("stranger")

    def world(self) -> World:
        cancelled, draft, paused = self.cancelled(), self.draft(), self.paused()
        own, members = self.running()
        lease = own.lease()
        assert lease is not None
        webhooks = f"/v1/organizations/{self.home.id}/webhooks"
        webhook = created(self.home.owner.post(webhooks, json={"url": "https://hooks.example.org/"}))["id"]
        left_out, expelled = self.left_out(paused, own), self.expelled(paused)
        delivery = self.home.owner.get(f"{webhooks}/{webhook}/deliveries").json()["items"][0]["id"]
        ids = self.ids(own, lease) | {"webhook_id": webhook, "delivery_id": delivery}
        self.hear_all_processes()
        strange = self.service.new_worker(self.stranger, "gpu")
        return World(
            self.service, self.home, self.member, self.stranger,
            tokens=self.tokens(own.worker, members.worker, strange),
            ids={
                "running": ids,
                "draft": ids | {"federation_id": draft, "organization_id": self.member.id},
                "paused": ids | {"federation_id": paused, "client_id": left_out},
                "expelled": ids | {"federation_id": paused, "client_id": expelled},
                "cancelled": ids | {"federation_id": cancelled},
            },
            bodies=self.bodies(own, lease),
            bodies_of={
                ("rotate_worker_key", role): Identity().rotation(worker.id)
                for role, worker in (("member_worker", members.worker), ("strange_worker", strange))
            },
            conditions={"accept_invitation": self.digest_of(draft)},
            private={
                "home": {own.client_id, own.worker.id, lease["job_id"], webhook},
                "member": {self.member.id, members.client_id, members.worker.id},
            },
        ).keep()  # fmt: skip

    def hear_all_processes(self) -> None:
        with writing() as session:
            for role in heartbeats.ROLES:
                heartbeats.renew(session, role, role, utcnow() + timedelta(days=1))

    # ---- federations

    def draft(self) -> str:
        federation_id = self.rig.create(name="drafted")
        self.post("invitations", organization_id=self.member.id)
        return federation_id

    def cancelled(self) -> str:
        federation_id = self.rig.create(name="ended")
        self.rig.post("cancel")
        return federation_id

    def paused(self) -> str:
        federation_id = self.rig.create(name="resting")
        self.rig.post("start")
        self.rig.post("pause")
        return federation_id

    def running(self) -> tuple[Actor, Actor]:
        """Its first round is closed, its second collects."""
        self.rig.create(name="at work", rounds=5)
        self.post("invitations", organization_id=self.member.id)
        accept(self.member.owner, self.rig.federation_id).raise_for_status()
        own, members = (self.rig.join(self.rig.actor(of)) for of in (self.home, self.member))
        self.rig.post("start")
        assert (own.work(), members.work()) == ("describe", "describe")
        self.rig.settle()
        self.rig.play(rounds=1)
        return own, members

    def left_out(self, federation_id: str, own: Actor) -> str:
        """A client that is out, for its owner to restore."""
        path, wish = f"/v1/federations/{federation_id}/clients", {"worker_id": own.worker.id, "dataset": DATASET}
        client_id = str(created(self.home.owner.post(path, json=wish))["id"])
        with writing() as session:
            clients.take_out(session, session.get_one(Client, client_id), "model_mismatch", None)
        return client_id

    def expelled(self, federation_id: str) -> str:
        """A client that was put out, for the federation's owner to let in again."""
        worker = self.service.new_worker(self.home, "put out", CAPABILITIES)
        wish = {"worker_id": worker.id, "dataset": DATASET}
        client_id = str(created(self.home.owner.post(f"/v1/federations/{federation_id}/clients", json=wish))["id"])
        self.home.owner.post(f"/v1/clients/{client_id}/expel").raise_for_status()
        return client_id

    def post(self, *parts: str, **body: Any) -> None:
        self.home.owner.post(self.rig.path(*parts), json=body).raise_for_status()

    # ---- who asks, for what, in which words

    def tokens(self, own: EnrolledWorker, members: EnrolledWorker, strange: EnrolledWorker) -> dict[str, Token]:
        gone = self.service.new_worker(self.home, "gpu")
        self.home.owner.delete(f"/v1/workers/{gone.id}").raise_for_status()
        return {
            "revoked_key": self.revoked_key(),
            "revoked_worker": gone.identity.token,
            "admin": lambda: self.service.admin_key,
            **{role: partial(key_of, getattr(self.home, role)) for role in ("owner", "operator", "viewer")},
            "worker": own.identity.token,
            "member": partial(key_of, self.member.owner),
            "member_worker": members.identity.token,
            "stranger": partial(key_of, self.stranger.owner),
            "strange_worker": strange.identity.token,
        }

    def revoked_key(self) -> Token:
        key = self.spare_key()
        self.home.owner.delete(f"/v1/organizations/{self.home.id}/api-keys/{key['id']}").raise_for_status()
        return lambda: str(key["key"])

    def digest_of(self, federation_id: str) -> str:
        """What a member agrees to, as a tag."""
        return f'"{self.member.owner.get(f"/v1/federations/{federation_id}").json()["definition_digest"]}"'

    def spare_key(self) -> dict[str, Any]:
        path = f"/v1/organizations/{self.home.id}/api-keys"
        return created(self.home.owner.post(path, json={"name": "spare", "role": "owner"}))

    def ids(self, own: Actor, lease: Mapping[str, Any]) -> dict[str, str]:
        tokens = f"/v1/organizations/{self.home.id}/enrollment-tokens"
        upload = {"size_bytes": len(CHUNK), "digest": digest_of(CHUNK)}
        return {
            "organization_id": self.home.id,
            "key_id": self.spare_key()["id"],
            "token_id": created(self.home.owner.post(tokens, json={}))["id"],
            "worker_id": own.worker.id,
            "name": "fedavg",
            "federation_id": self.rig.federation_id,
            "client_id": own.client_id,
            "number": "1",
            "round_id": self.rig.rounds()[-1]["id"],
            "job_id": lease["job_id"],
            "upload_id": created(self.home.owner.post("/v1/artifacts/uploads", json=upload))["upload_id"],
            "index": "0",
            "digest": lease["instruction"]["digest"],
            "file": "adapter_config.json",
        }

    def bodies(self, own: Actor, lease: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        spare = self.service.new_worker(self.home, "spare", CAPABILITIES)
        boot = {"boot_id": own.worker.boot_id}
        update = own.signed(lease, own.put(own.make_update(own.instruction(lease))), 10.0, 10)
        return {
            "create_federation": {"organization_id": self.home.id},
            "invite_organization": {"organization_id": self.stranger.id},
            "register_client": {"worker_id": spare.id, "dataset": DATASET},
            "enroll_worker": Identity().enrollment(
                self.service.new_enrollment_token(self.home.id, max_uses=10_000), "enrolled"
            ),
            "rotate_worker_key": Identity().rotation(own.worker.id),
            "accept_invitation": {"definition_digest": None},
            "lease_job": boot | {"wait_seconds": 0},
            **dict.fromkeys(("renew_job", "fail_job", "decline_job"), boot),
            "submit_job": {"update": update},
        }
