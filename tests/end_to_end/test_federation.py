"""A whole federation with real processes: from REST to an adapter that PEFT opens."""

import io
import json
import time
import zipfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.nodes import LABELS, START_SECONDS, Consortium
from tests.support.receiver import receiving
from tests.support.service import created
from tests.support.tiny_models import color_rows


class TestAFederation:
    def test_it_learns_and_its_adapter_opens_in_peft(self, two_nodes: Consortium, tmp_path: Path) -> None:
        federation_id = two_nodes.start(rounds=4, evaluation={"every": 1}, seed=4)  # nobody has its files yet
        ended = two_nodes.end(federation_id)
        assert (ended["reason"], ended["rounds_done"]) == ("stopped_rounds", 4)
        rounds = two_nodes.get(federation_id, "rounds")["items"]
        assert [row["not_reproducible"] for row in rounds] == [[]] * 4
        first, last = rounds[0]["metrics"], rounds[-1]["metrics"]
        assert last["loss"] < first["loss"]
        assert last["evaluated_by"] == last["clients"] == 2
        assert all(row["upload_bytes"] > 0 for row in rounds)
        assert rounds[0]["download_bytes"] > 0
        assert all(row["seconds"]["longest_training"] > 0 for row in rounds)
        answer = two_nodes.owner.http.get(f"/v1/federations/{federation_id}/adapter")
        zipfile.ZipFile(io.BytesIO(answer.content)).extractall(tmp_path)
        assert accuracy(two_nodes.model, tmp_path) > 1 / len(LABELS) + 0.2

    def test_every_update_and_state_stands_in_the_provenance(self, two_nodes: Consortium) -> None:
        federation_id = two_nodes.start(rounds=2)
        two_nodes.end(federation_id)
        told = json.loads(two_nodes.file(federation_id, "provenance.json"))
        assert [len(row["updates"]) for row in told["rounds"]] == [2, 2]
        assert [update["ordinal"] for update in told["rounds"][1]["updates"]] == [0, 1]
        assert told["base_weights_digest"].startswith("sha256:")

    def test_what_workers_signed_is_verified_and_aggregated_again_after_a_change_of_keys(
        self, two_nodes: Consortium, tmp_path: Path
    ) -> None:
        south = two_nodes.nodes[1]
        south.kill()
        changed = south.command("rotate-key")
        assert changed.returncode == 0, changed.stderr
        south.start()
        federation_id = two_nodes.start(rounds=2)
        two_nodes.end(federation_id)
        file = tmp_path / "adapter.zip"
        file.write_bytes(two_nodes.owner.http.get(f"/v1/federations/{federation_id}/adapter").content)
        told = json.loads(zipfile.ZipFile(file).read("provenance.json"))
        assert told["rounds"][0]["updates"][1]["key_id"] in changed.stdout
        assert two_nodes.installation.run("verify", str(file), "--artifacts").splitlines() == [
            "files: 3 have the SHA-256 that the provenance names",
            "signature of the coordinator: not checked without its public key (--key)",
            "signatures: 4 updates, signed with 2 keys",
            f"chain: 2 rounds of {federation_id}, up to {told['digest']}",
            "aggregated again: train round 1, same bytes",
            "aggregated again: train round 2, same bytes",
        ]

    def test_what_each_organization_did_is_summed_and_outlives_the_federation(self, two_nodes: Consortium) -> None:
        federation_id = two_nodes.start(rounds=2)
        two_nodes.end(federation_id)
        rounds = two_nodes.get(federation_id, "rounds")["items"]
        clients = {row["organization_id"]: row for row in two_nodes.get(federation_id, "clients")["items"]}
        jobs = [
            job for row in rounds for job in two_nodes.get(federation_id, f"rounds/{row['number']}/jobs")["items"]
        ]
        two_nodes.owner.http.delete(f"/v1/federations/{federation_id}").raise_for_status()
        entries = []
        for node in two_nodes.nodes:
            listed = two_nodes.of_organization(node, "ledger?limit=200")["items"]
            (entry,) = [row for row in listed if row["federation_id"] == federation_id]
            assert (entry["rounds"], entry["updates_accepted"], entry["updates_failed"]) == (2, 2, 0)
            assert entry["examples"] == 2 * clients[node.organization_id]["examples"]
            assert entry["deleted_at"] is not None
            entries.append(entry)
        for name in ("upload_bytes", "download_bytes"):
            assert sum(entry[name] for entry in entries) == sum(row[name] for row in rounds)
        assert sum(entry["upload_bytes"] for entry in entries) > 0
        seconds = sum(job["seconds"]["training"] for job in jobs)
        assert abs(sum(entry["training_seconds"] for entry in entries) - seconds) < 1e-6 * seconds
        deleted = two_nodes.of_organization(two_nodes.nodes[1], "audit?action=federation.deleted")["items"]
        assert federation_id in {entry["target"] for entry in deleted}
        told = two_nodes.installation.run("audit", "verify").splitlines()
        chains = {line.partition(":")[0] for line in told}
        assert chains >= {"installation", *(node.organization_id for node in two_nodes.nodes)}

    def test_a_webhook_is_told_of_every_round_though_its_receiver_failed_twice(self, two_nodes: Consortium) -> None:
        root = f"/v1/organizations/{two_nodes.owner.organization_id}/webhooks"
        with receiving([500, 503]) as receiver:
            wish = {"url": receiver.url, "events": ["round.closed", "federation.completed"]}
            hook = created(two_nodes.owner.http.post(root, json=wish))
            two_nodes.end(two_nodes.start(rounds=2))
            deadline = time.monotonic() + START_SECONDS
            while len(receiver.messages) < 5:
                assert time.monotonic() < deadline, two_nodes.story()
                time.sleep(0.05)
            two_nodes.owner.http.delete(f"{root}/{hook['id']}").raise_for_status()
        told = {
            message.headers["Fedloom-Delivery"]: json.loads(message.body)["type"] for message in receiver.messages
        }
        assert sorted(told.values()) == ["federation.completed", "round.closed", "round.closed"]

    def test_a_prefix_travels_the_same_way(self, two_nodes: Consortium, tmp_path: Path) -> None:
        federation_id = two_nodes.start(rounds=1, trainable={"kind": "prefix", "num_virtual_tokens": 4})
        two_nodes.end(federation_id)
        answer = two_nodes.owner.http.get(f"/v1/federations/{federation_id}/adapter")
        zipfile.ZipFile(io.BytesIO(answer.content)).extractall(tmp_path)
        assert 0 <= accuracy(two_nodes.model, tmp_path) <= 1

    def test_other_weights_on_one_worker_are_named(self, two_nodes: Consortium) -> None:
        wrong = {"id": "tiny-bert", "weights_sha256": "0" * 64}
        federation_id = two_nodes.start(base_model=wrong, wait_for_clients_seconds=600)
        two_nodes.wait(federation_id, lambda federation, rounds: federation["clients"]["out"] == 2)
        clients = two_nodes.get(federation_id, "clients")["items"]
        assert {client["reason"] for client in clients} == {"model_mismatch"}
        two_nodes.owner.http.post(f"/v1/federations/{federation_id}/cancel").raise_for_status()


def accuracy(model: Path, adapter: Path) -> float:
    """Of the adapter over the base model, on rows that nobody trained on."""
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(LABELS))
    opened = PeftModel.from_pretrained(base, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = color_rows(60, seed=99)
    encoded = tokenizer([row["text"] for row in rows], return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = opened(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
    wanted = torch.tensor([LABELS.index(row["label"]) for row in rows])
    return float((logits.argmax(-1) == wanted).double().mean())
