"""Base models: the allowlist, the digest of their weights, and reading of safetensors alone."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from federated.protocol import BaseModelReference
from tests.support.tiny_models import bert_folder, llama_folder
from tests.support.training import COLORS
from worker_agent.settings import AgentSettings
from worker_agent.training.job_errors import ModelError
from worker_agent.training.model import (
    Placement,
    check_model,
    check_weights,
    load_base,
    model_folder,
    text_facts,
    weights_sha256,
)

PLACE = Placement(torch.device("cpu"), torch.float32, "none")


def refusal(settings: AgentSettings, model_id: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        check_model(settings, model_id)
    return caught.value


class TestAllowed:
    def test_a_model_outside_the_settings_is_refused_and_those_allowed_are_named(self) -> None:
        error = refusal(AgentSettings(models={"small": "x", "large": "y"}), "other")
        assert error.code == "model_missing"
        assert error.detail == "this node does not allow the base model 'other'; it allows: large, small"

    def test_a_folder_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        error = refusal(AgentSettings(models={"small": str(tmp_path / "gone")}), "small")
        assert error.code == "model_missing"
        assert str(tmp_path / "gone") in error.detail

    def test_a_folder_with_pickled_weights_alone_is_refused(self, tmp_path: Path) -> None:
        folder = bert_folder(tmp_path / "bert")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        assert "no model.safetensors" in refusal(AgentSettings(models={"small": str(folder)}), "small").detail
        with pytest.raises(ModelError):
            load_base(folder, COLORS, PLACE, 0)

    def test_a_folder_without_a_configuration_is_refused(self, tmp_path: Path) -> None:
        folder = bert_folder(tmp_path / "bert")
        (folder / "config.json").write_text("{}", encoding="utf-8")
        assert refusal(AgentSettings(models={"small": str(folder)}), "small").code == "model_missing"

    def test_the_home_folder_may_be_written_as_a_tilde(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        bert_folder(tmp_path / "bert")
        assert model_folder(AgentSettings(models={"small": "~/bert"}), "small") == tmp_path / "bert"


@pytest.fixture
def hub(tmp_path: Path) -> dict[str, str]:
    """The environment of a process with two revisions of a hub's model on disk, `main` and `v1`, and no network."""
    home = tmp_path / "hub"
    for name, commit in HUB.items():
        (refs := home / "hub" / "models--org--bert" / "refs").mkdir(parents=True, exist_ok=True)
        (refs / name).write_text(commit)
        bert_folder(home / "hub" / "models--org--bert" / "snapshots" / commit)
    return {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


HUB = {"main": "a" * 40, "v1": "b" * 40}


class TestRevision:
    @pytest.mark.parametrize(
        ("source", "wanted", "taken"),
        [
            ("org/bert", None, "main"),
            ("org/bert", "main", "main"),
            ("org/bert@v1", None, "v1"),
            ("org/bert@v1", "v1", "v1"),
        ],
    )
    def test_the_one_that_the_owner_fixed_is_taken(
        self, hub: dict[str, str], source: str, wanted: str | None, taken: str
    ) -> None:
        code = (
            "import sys; from worker_agent.training.model import model_folder; "
            "from worker_agent.settings import AgentSettings; "
            "print(model_folder(AgentSettings(models={'small': sys.argv[1]}), 'small', sys.argv[2] or None))"
        )
        command = [sys.executable, "-c", code, source, wanted or ""]
        done = subprocess.run(command, env=hub, capture_output=True, text=True, check=True)
        assert Path(done.stdout.strip()).name == HUB[taken]

    @pytest.mark.parametrize(
        ("source", "wanted"), [("org/bert", "v1"), ("org/bert@v1", "main"), ("org/bert@v1", "v2"), ("org/bert", "")]
    )
    def test_another_than_the_owner_fixed_is_refused(self, source: str, wanted: str) -> None:
        with pytest.raises(ModelError, match="revision") as caught:
            model_folder(AgentSettings(models={"small": source}), "small", wanted)
        assert caught.value.code == "model_mismatch"
        assert 'small = "org/bert@REVISION"' in caught.value.detail

    def test_a_folder_has_none(self, tmp_path: Path) -> None:
        folder = bert_folder(tmp_path / "bert@home")
        assert model_folder(AgentSettings(models={"small": str(folder)}), "small", "v7") == folder


class TestDigest:
    def test_of_one_file_it_is_the_files_own(self, tmp_path: Path) -> None:
        folder = bert_folder(tmp_path / "bert")
        expected = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        assert check_model(AgentSettings(models={"small": str(folder)}), "small") == expected

    def test_of_several_files_it_is_that_of_their_sorted_names_and_digests(self, tmp_path: Path) -> None:
        folder = bert_folder(tmp_path / "bert", shard_bytes=8_000)
        shards = sorted(folder.glob("model-*.safetensors"))
        assert len(shards) > 1
        lines = "".join(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in shards)
        assert weights_sha256(folder) == hashlib.sha256(lines.encode()).hexdigest()

    def test_a_missing_shard_is_named(self, tmp_path: Path) -> None:
        folder = bert_folder(tmp_path / "bert", shard_bytes=8_000)
        lost = sorted(folder.glob("model-*.safetensors"))[1]
        lost.unlink()
        with pytest.raises(ModelError, match=lost.name):
            weights_sha256(folder)

    def test_a_changed_file_is_hashed_again(self, tmp_path: Path) -> None:
        folder = bert_folder(tmp_path / "bert")
        before = weights_sha256(folder)
        path = folder / "model.safetensors"
        changed = bytearray(path.read_bytes())
        changed[-1] ^= 1
        path.write_bytes(changed)
        os.utime(path, ns=(0, 0))
        assert weights_sha256(folder) == hashlib.sha256(changed).hexdigest() != before

    def test_other_weights_are_refused_with_the_heads_of_both_digests(self, tmp_path: Path) -> None:
        folder = bert_folder(tmp_path / "bert")
        found = weights_sha256(folder)
        assert check_weights(BaseModelReference(id="small", weights_sha256=found), folder) == found
        with pytest.raises(ModelError) as caught:
            check_weights(BaseModelReference(id="small", weights_sha256="0" * 64), folder)
        assert caught.value.code == "model_mismatch"
        assert found[:12] in caught.value.detail
        assert "0" * 12 + "…" in caught.value.detail


class TestLoading:
    def test_what_the_files_lack_is_told(self, tmp_path: Path) -> None:
        loaded = load_base(bert_folder(tmp_path / "bert", pooler=False), COLORS, PLACE, 0)
        assert loaded.new == {
            "bert.pooler.dense.bias",
            "bert.pooler.dense.weight",
            "classifier.bias",
            "classifier.weight",
        }
        assert not loaded.model.training

    def test_labels_stand_in_the_models_configuration(self, tmp_path: Path) -> None:
        config = load_base(bert_folder(tmp_path / "bert"), COLORS, PLACE, 0).model.config
        assert config.id2label == {0: "red", 1: "green", 2: "blue"}

    def test_quantization_without_its_library_says_what_to_install(self, tmp_path: Path) -> None:
        place = Placement(torch.device("cpu"), torch.float32, "4bit")
        with pytest.raises(ModelError) as caught:
            load_base(bert_folder(tmp_path / "bert"), COLORS, place, 0)
        assert caught.value.code == "quantization_missing"
        assert "pip install bitsandbytes" in caught.value.detail

    def test_an_encoder_tells_texts_apart_and_a_decoder_does_not(self, tmp_path: Path) -> None:
        assert text_facts(bert_folder(tmp_path / "bert")).segments
        assert not text_facts(llama_folder(tmp_path / "llama")).segments
