"""Audit entries of every action: the chains that hold them, and the actor that each names."""

import json

from tests.support.audit_log import actions, chain_of, entries
from tests.support.federation_rig import FederationRig
from tests.support.service import Service, accept, created, rotate


class TestWhatIsOnRecord:
    def test_the_installation_has_its_keys_and_organizations(self, service: Service) -> None:
        bank = service.new_organization("Bank")
        key, organization = entries(service.admin, "/v1/audit")
        assert (key["action"], key["by"], key["details"]) == (
            "api_key.created", "coordinator", {"name": "tests", "role": "admin", "expires_at": None},
        )  # fmt: skip
        assert (organization["action"], organization["by"]) == ("organization.created", key["target"])
        assert (organization["target"], organization["organizations"]) == (bank.id, [bank.id])

    def test_keys_and_tokens_are_named_by_id_and_without_their_secrets(self, service: Service) -> None:
        bank = service.new_organization("Bank")
        path = f"/v1/organizations/{bank.id}"
        key = created(bank.owner.post(f"{path}/api-keys", json={"name": "laptop", "role": "viewer"}))
        token = created(bank.owner.post(f"{path}/enrollment-tokens", json={"name": "basement"}))
        for _ in range(2):  # the second time changes nothing
            assert bank.owner.delete(f"{path}/api-keys/{key['id']}").status_code == 204
            assert bank.owner.delete(f"{path}/enrollment-tokens/{token['id']}").status_code == 204
        found = chain_of(service, bank.id)[4:]
        assert [(entry["action"], entry["target"]) for entry in found] == [
            ("api_key.created", key["id"]),
            ("enrollment_token.created", token["id"]),
            ("api_key.revoked", key["id"]),
            ("enrollment_token.revoked", token["id"]),
        ]
        assert len({entry["by"] for entry in found}) == 1
        told = json.dumps(found)
        assert key["key"].rpartition("_")[2] not in told
        assert token["token"].rpartition("_")[2] not in told

    def test_a_worker_from_enrollment_to_revocation(self, service: Service) -> None:
        bank = service.new_organization("Bank")
        worker = service.new_worker(bank, "gpu")
        rotate(worker)
        assert bank.owner.delete(f"/v1/workers/{worker.id}").status_code == 204
        enrolled, rotated, revoked = chain_of(service, bank.id)[-3:]
        assert actions([enrolled, rotated, revoked]) == ["worker.enrolled", "worker.key_rotated", "worker.revoked"]
        assert {entry["target"] for entry in (enrolled, rotated, revoked)} == {worker.id}
        assert (enrolled["by"], rotated["by"]) == (worker.id, worker.id)
        assert revoked["by"].startswith("key_")
        assert enrolled["details"]["key_id"] != rotated["details"]["key_id"]

    def test_a_federation_from_draft_to_deletion_in_the_logs_of_all_it_concerns(self, rig: FederationRig) -> None:
        service, owner = rig.service, rig.owner
        clinic = service.new_organization("Clinic")
        before = len(chain_of(service, owner.id))
        rig.create()
        changed = owner.owner.patch(rig.path(), json={"rounds": 3}, headers={"If-Match": "*"})
        assert changed.status_code == 200, changed.text
        created(owner.owner.post(rig.path("invitations"), json={"organization_id": clinic.id}))
        accept(clinic.owner, rig.federation_id).raise_for_status()
        actor = rig.join(rig.actor(clinic))
        rig.post("start")
        actor.http.post(f"/v1/jobs/{actor.lease()['job_id']}/decline", json=declined()).raise_for_status()  # type: ignore[index]
        clinic.owner.post(f"/v1/clients/{actor.client_id}/restore").raise_for_status()
        clinic.owner.post(f"/v1/clients/{actor.client_id}/leave").raise_for_status()
        rig.post("pause")
        rig.post("resume")
        clinic.owner.post(rig.path("leave"), json={"reason": "enough"}).raise_for_status()
        rig.post("cancel")
        clone = created(owner.owner.post(rig.path("clone")))
        assert owner.owner.delete(rig.path()).status_code == 204
        shared = [
            "invitation.accepted", "client.registered", "federation.started", "client.out", "client.restored",
            "client.left", "federation.paused", "federation.resumed", "invitation.left",
        ]  # fmt: skip
        own = chain_of(service, owner.id)[before:]
        assert [action for action in actions(own) if action != "worker.enrolled"] == [
            "federation.created", "federation.changed", "invitation.invited", *shared,
            "federation.cancelled", "federation.created", "federation.deleted",
        ]  # fmt: skip
        theirs = [
            entry for entry in chain_of(service, clinic.id) if entry["action"] in {*shared, "invitation.invited"}
        ]
        assert actions(theirs) == ["invitation.invited", *shared]
        out = theirs[shared.index("client.out") + 1]
        assert (out["by"], out["details"]["reason"]) == ("coordinator", "policy_rank")
        assert theirs[-1]["details"] == {"organization_id": clinic.id, "reason": "enough"}
        assert own[-2]["details"] == {"name": clone["name"], "cloned_from": rig.federation_id}
        assert (own[-1]["target"], own[-1]["details"]["state"]) == (rig.federation_id, "cancelled")

    def test_the_end_of_a_federation_and_who_took_its_adapter(self, rig: FederationRig) -> None:
        clinic = rig.service.new_organization("Clinic")
        rig.running(rounds=1)
        rig.play(1)
        assert rig.show()["state"] == "completed"
        (ended,) = entries(rig.owner.owner, f"/v1/organizations/{rig.owner.id}/audit", action="federation.completed")
        assert (ended["by"], ended["target"]) == ("coordinator", rig.federation_id)
        reader = rig.owner.viewer
        reader.get(rig.path("adapter")).raise_for_status()
        path = rig.path("rounds", "1", "adapter", "adapter_config.json")
        tag = reader.get(path, headers={"Range": "bytes=1-4"}).headers["etag"]
        assert reader.get(path, headers={"If-None-Match": tag}).status_code == 304
        assert clinic.owner.get(path).status_code == 404
        taken = entries(rig.owner.owner, f"/v1/organizations/{rig.owner.id}/audit", action="adapter.downloaded")
        assert [entry["details"] for entry in taken] == [
            {"round": 1, "file": None},
            {"round": 1, "file": "adapter_config.json"},
        ]
        assert {entry["target"] for entry in taken} == {rig.federation_id}


def declined() -> dict[str, str]:
    return {"boot_id": "boot-0000", "code": "policy_rank", "detail": "at most rank 1 here"}
