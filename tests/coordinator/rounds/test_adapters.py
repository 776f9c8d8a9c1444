"""Downloads of adapters: whole, in parts, of any round, and by permitted callers."""

import io
import json
import zipfile

from federated.payloads.payload import Payload
from tests.support.service import accept, problem
from tests.support.stage import Stage

FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors", "model.sig", "provenance.json"]


class TestDownload:
    def test_the_zip_holds_what_peft_opens_and_where_it_came_from(self, stage: Stage) -> None:
        stage.running(rounds=2)
        stage.play(2)
        answer = stage.owner.viewer.get(stage.path("adapter"))
        assert answer.headers["content-type"] == "application/zip"
        archive = zipfile.ZipFile(io.BytesIO(answer.content))
        assert (archive.testzip(), sorted(archive.namelist())) == (None, FILES)
        tensors = Payload.decode(archive.read("adapter_model.safetensors"))
        assert sorted(tensors) == [f"base_model.model.layer.lora_{factor}.weight" for factor in "AB"]
        config = json.loads(archive.read("adapter_config.json"))
        assert (config["peft_type"], config["r"], config["target_modules"]) == ("LORA", 2, ["layer"])

    def test_the_provenance_names_every_state_and_update(self, stage: Stage) -> None:
        stage.running(rounds=2)
        stage.play(2)
        told = stage.get("adapter", "provenance.json")
        rounds = stage.rounds()
        assert [row["state_digest"] for row in told["rounds"]] == [row["state_digest"] for row in rounds]
        jobs = told["rounds"][1]["updates"]
        assert [(row["ordinal"], row["weight"], row["examples"]) for row in jobs] == [(0, 10.0, 10), (1, 20.0, 20)]
        assert all(row["digest"].startswith("sha256:") for row in jobs)
        assert told["rounds"][0]["environment"]["aggregation_threads"] == 2
        assert told["adapter"]["files"] == rounds[1]["adapter"]["files"]
        of_the_first = stage.get("rounds", "1", "adapter", "provenance.json")
        assert len(of_the_first["rounds"]) == 1

    def test_every_aggregated_round_keeps_its_adapter(self, stage: Stage) -> None:
        stage.running(rounds=3)
        stage.play(1)
        problem(stage.owner.owner.get(stage.path("rounds", "2", "adapter")), 404, "adapter_unknown")
        stage.play(2)
        contents = set()
        for number in (1, 2, 3):
            answer = stage.owner.owner.get(stage.path("rounds", str(number), "adapter", "adapter_model.safetensors"))
            contents.add(answer.content)
            assert len(stage.owner.owner.get(stage.path("rounds", str(number), "adapter")).content) > 1000
        newest = stage.owner.owner.get(stage.path("adapter", "adapter_model.safetensors")).content
        assert newest in contents
        assert len(contents) == 3

    def test_a_file_comes_in_parts_and_not_again_if_it_is_there(self, stage: Stage) -> None:
        stage.running(rounds=1)
        stage.play(1)
        path = stage.path("adapter", "adapter_model.safetensors")
        whole = stage.owner.owner.get(path)
        part = stage.owner.owner.get(path, headers={"Range": "bytes=8-15"})
        assert (part.status_code, part.content) == (206, whole.content[8:16])
        again = stage.owner.owner.get(path, headers={"If-None-Match": whole.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        problem(stage.owner.owner.get(path, headers={"Range": "bytes=999999-"}), 416, "range_not_satisfiable")

    def test_a_file_that_is_not_there_is_told_which_are(self, stage: Stage) -> None:
        stage.running(rounds=1)
        problem(stage.owner.owner.get(stage.path("adapter")), 404, "adapter_unknown")
        stage.play(1)
        told = problem(stage.owner.owner.get(stage.path("adapter", "weights.bin")), 404, "file_unknown")
        assert "adapter_model.safetensors" in told["detail"]

    def test_who_takes_part_may_download_and_who_is_merely_invited_may_not(self, stage: Stage) -> None:
        stage.create(rounds=1)
        guest = stage.service.new_organization("guest")
        idle = stage.service.new_organization("idle")
        for organization in (guest, idle):
            body = {"organization_id": organization.id}
            stage.owner.owner.post(stage.path("invitations"), json=body).raise_for_status()
        accept(guest.owner, stage.federation_id).raise_for_status()
        for actor in (stage.join(stage.actor()), stage.join(stage.actor(guest))):
            assert actor.client_id
        stage.post("start")
        stage.play(1)
        assert guest.viewer.get(stage.path("adapter")).status_code == 200
        problem(idle.owner.get(stage.path("adapter")), 403, "not_taking_part")
        own = guest.viewer.get(stage.path("rounds", "1", "jobs")).json()["items"]
        assert [job["ordinal"] for job in own] == [1]
        round_id = stage.rounds()[0]["id"]
        assert len(stage.owner.viewer.get(f"/v1/rounds/{round_id}/jobs").json()["items"]) == 2
        stranger = stage.service.new_organization("stranger")
        problem(stranger.owner.get(stage.path("adapter")), 404, "federation_unknown")
        problem(stranger.owner.get(f"/v1/rounds/{round_id}/jobs"), 404, "round_unknown")
