"""Downloads of adapters: whole, in parts, of any round, and by permitted callers."""

import io
import json
import zipfile

from federated.payloads.payload import Payload
from tests.support.federation_rig import FederationRig
from tests.support.service import accept, problem

FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors", "model.sig", "provenance.json"]


class TestDownload:
    def test_the_zip_holds_what_peft_opens_and_where_it_came_from(self, rig: FederationRig) -> None:
        rig.running(rounds=2)
        rig.play(2)
        answer = rig.owner.viewer.get(rig.path("adapter"))
        assert answer.headers["content-type"] == "application/zip"
        archive = zipfile.ZipFile(io.BytesIO(answer.content))
        assert (archive.testzip(), sorted(archive.namelist())) == (None, FILES)
        tensors = Payload.decode(archive.read("adapter_model.safetensors"))
        assert sorted(tensors) == [f"base_model.model.layer.lora_{factor}.weight" for factor in "AB"]
        config = json.loads(archive.read("adapter_config.json"))
        assert (config["peft_type"], config["r"], config["target_modules"]) == ("LORA", 2, ["layer"])

    def test_the_provenance_names_every_state_and_update(self, rig: FederationRig) -> None:
        rig.running(rounds=2)
        rig.play(2)
        told = rig.get("adapter", "provenance.json")
        rounds = rig.rounds()
        assert [row["state_digest"] for row in told["rounds"]] == [row["state_digest"] for row in rounds]
        jobs = told["rounds"][1]["updates"]
        assert [(row["ordinal"], row["weight"], row["examples"]) for row in jobs] == [(0, 10.0, 10), (1, 20.0, 20)]
        assert all(row["digest"].startswith("sha256:") for row in jobs)
        assert told["rounds"][0]["environment"]["aggregation_threads"] == 2
        assert told["adapter"]["files"] == rounds[1]["adapter"]["files"]
        of_the_first = rig.get("rounds", "1", "adapter", "provenance.json")
        assert len(of_the_first["rounds"]) == 1

    def test_every_aggregated_round_keeps_its_adapter(self, rig: FederationRig) -> None:
        rig.running(rounds=3)
        rig.play(1)
        problem(rig.owner.owner.get(rig.path("rounds", "2", "adapter")), 404, "adapter_unknown")
        rig.play(2)
        contents = set()
        for number in (1, 2, 3):
            answer = rig.owner.owner.get(rig.path("rounds", str(number), "adapter", "adapter_model.safetensors"))
            contents.add(answer.content)
            assert len(rig.owner.owner.get(rig.path("rounds", str(number), "adapter")).content) > 1000
        newest = rig.owner.owner.get(rig.path("adapter", "adapter_model.safetensors")).content
        assert newest in contents
        assert len(contents) == 3

    def test_a_file_comes_in_parts_and_not_again_if_it_is_there(self, rig: FederationRig) -> None:
        rig.running(rounds=1)
        rig.play(1)
        path = rig.path("adapter", "adapter_model.safetensors")
        whole = rig.owner.owner.get(path)
        part = rig.owner.owner.get(path, headers={"Range": "bytes=8-15"})
        assert (part.status_code, part.content) == (206, whole.content[8:16])
        again = rig.owner.owner.get(path, headers={"If-None-Match": whole.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        problem(rig.owner.owner.get(path, headers={"Range": "bytes=999999-"}), 416, "range_not_satisfiable")

    def test_a_file_that_is_not_there_is_told_which_are(self, rig: FederationRig) -> None:
        rig.running(rounds=1)
        problem(rig.owner.owner.get(rig.path("adapter")), 404, "adapter_unknown")
        rig.play(1)
        told = problem(rig.owner.owner.get(rig.path("adapter", "weights.bin")), 404, "file_unknown")
        assert "adapter_model.safetensors" in told["detail"]

    def test_who_takes_part_may_download_and_who_is_merely_invited_may_not(self, rig: FederationRig) -> None:
        rig.create(rounds=1)
        guest = rig.service.new_organization("guest")
        idle = rig.service.new_organization("idle")
        for organization in (guest, idle):
            body = {"organization_id": organization.id}
            rig.owner.owner.post(rig.path("invitations"), json=body).raise_for_status()
        accept(guest.owner, rig.federation_id).raise_for_status()
        for actor in (rig.join(rig.actor()), rig.join(rig.actor(guest))):
            assert actor.client_id
        rig.post("start")
        rig.play(1)
        assert guest.viewer.get(rig.path("adapter")).status_code == 200
        problem(idle.owner.get(rig.path("adapter")), 403, "not_taking_part")
        own = guest.viewer.get(rig.path("rounds", "1", "jobs")).json()["items"]
        assert [job["ordinal"] for job in own] == [1]
        round_id = rig.rounds()[0]["id"]
        assert len(rig.owner.viewer.get(f"/v1/rounds/{round_id}/jobs").json()["items"]) == 2
        stranger = rig.service.new_organization("stranger")
        problem(stranger.owner.get(rig.path("adapter")), 404, "federation_unknown")
        problem(stranger.owner.get(f"/v1/rounds/{round_id}/jobs"), 404, "round_unknown")
