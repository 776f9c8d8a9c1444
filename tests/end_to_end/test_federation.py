"""A whole federation with real processes: from REST to an adapter that PEFT opens."""

import io
import json
import zipfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.nodes import LABELS, Consortium
from tests.support.tiny_models import color_rows


class TestAFederation:
    def test_it_learns_and_its_adapter_opens_in_peft(self, two_nodes: Consortium, tmp_path: Path) -> None:
        federation_id = two_nodes.start(rounds=4, evaluation={"every": 1})
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
            "signatures: 4 updates, signed with 2 keys",
            f"chain: 2 rounds of {federation_id}, up to {told['digest']}",
            "aggregated again: train round 1, same bytes",
            "aggregated again: train round 2, same bytes",
        ]

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
