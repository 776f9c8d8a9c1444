"""Edge cases of merging: ledgers, tensors without a place, a missing model library, and configurations."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from federated import simulation
from federated.contract import ClientFacts, RoundFacts
from federated.export.adapter_files import write_adapter
from federated.merge import MergeError, merge
from federated.registry import client_half, make_config, server_half
from federated.simulation import SimulatedFederation
from federated.trainable import Full, Lora
from tests.support import zoo
from tests.support.training import work_of
from tests.support.written_models import EXAMPLES, TASKS, config_of, evaluated, node_of
from worker_agent.training.session import Workbench

LINEAR = Lora(r=2, lora_alpha=4, target_modules="all-linear")
pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]


class TestLedgers:
    @pytest.mark.parametrize(
        ("name", "task"),
        [
            ("llama-tied", "causal_lm"),
            ("gpt2-both-copies", "causal_lm"),
            ("bert-gamma-beta", "classifier"),
            ("bert-gamma-beta", "cloze"),
            ("bert-with-two-labels", "classifier"),
            ("gemma3-vision", "causal_lm"),
            ("llama-shards", "classifier"),
            ("t5", "classifier"),
        ],
    )
    def test_a_merged_ledger_is_what_was_evaluated(self, root: Path, tmp_path: Path, name: str, task: str) -> None:
        work, trainable = work_of(name, Full(), TASKS[task]), Full()
        bench, data = Workbench(node_of(name, root)), "colors" if TASKS[task].labels else "instructions"
        config = make_config(
            "fedkseed", {"local_steps": 2, "batch_size": 2, "candidates": 128, "learning_rate": 1e-3}
        )
        federation = SimulatedFederation("fedkseed", config, trainable, 1, 1, seed=work.federation_seed)
        result = simulation.run(federation, lambda _, seed: bench.open(work, data, seed, {}))
        session = bench.open(work, data, 0, {})
        inputs = next(session.batches(range(EXAMPLES), EXAMPLES)).inputs
        with torch.no_grad():
            before = session.model(**inputs).logits
        clients, step = [ClientFacts(1, "one", 4, {}, {}, None, 0)], RoundFacts(2, "evaluate", 1, 1)
        evaluation = server_half("fedkseed", config, trainable).plan(result.state, clients, step)[1]
        client_half("fedkseed", config, trainable).apply(evaluation, session, None, "shared")
        with torch.no_grad():
            expected = session.model(**inputs).logits
        assert not torch.allclose(before, expected, atol=1e-4)
        base = zoo.folder(name, root)
        write_adapter(tmp_path / "ledger", result.adapter, trainable, session.facts, str(base), {})
        merge(tmp_path / "ledger", base, tmp_path / "merged")
        kind = type(session.model)
        model, loading = kind.from_pretrained(tmp_path / "merged", output_loading_info=True)
        assert not any(loading[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.no_grad():
            found = model.eval()(**inputs).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert config_of(tmp_path / "merged")["architectures"] == [kind.__name__]


class TestWhatHasNoPlace:
    @pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "gemma3-vision"])
    @pytest.mark.parametrize("tensor", ["lora_A.weight", "lora_B.weight", "bias_of_something", "odd.weight"])
    def test_is_refused_by_name(self, root: Path, tmp_path: Path, name: str, tensor: str) -> None:
        evaluation = evaluated(name, root, "classifier", LINEAR)
        file = evaluation.write(tmp_path / "adapter") / "adapter_model.safetensors"
        save_file(load_file(file) | {f"base_model.model.nowhere.{tensor}": torch.ones(2, 2)}, file)
        with pytest.raises(MergeError, match="nowhere"):
            merge(tmp_path / "adapter", evaluation.base, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()

    def test_two_tensors_of_one_name_are_refused(self, root: Path, tmp_path: Path) -> None:
        evaluation = evaluated("llama", root, "causal_lm", LINEAR)
        file = evaluation.write(tmp_path / "adapter") / "adapter_model.safetensors"
        tensors = load_file(file)
        name = min(name for name in tensors if "lora_A" in name)
        save_file(tensors | {name.replace(".lora_A", ".base_layer.lora_A"): tensors[name].clone()}, file)
        with pytest.raises(MergeError, match="two tensors for"):
            merge(tmp_path / "adapter", evaluation.base, tmp_path / "merged")

    def test_factors_on_experts_that_the_files_hold_in_parts_are_refused(self, root: Path, tmp_path: Path) -> None:
        evaluation = evaluated(
            "mixtral", root, "causal_lm", LINEAR.model_copy(update={"target_modules": ("q_proj",)})
        )
        file = evaluation.write(tmp_path / "adapter") / "adapter_model.safetensors"
        module = "base_model.model.model.layers.0.mlp.experts.gate_up_proj"
        extra = {f"{module}.lora_A.weight": torch.ones(2, 32), f"{module}.lora_B.weight": torch.ones(128, 2)}
        save_file(load_file(file) | extra, file)
        with pytest.raises(MergeError, match=r"adapted module 'model\.layers\.0\.mlp\.experts\.gate_up_proj'"):
            merge(tmp_path / "adapter", evaluation.base, tmp_path / "merged")


class TestWithoutAModelLibrary:
    @pytest.mark.parametrize("name", ["bert", "bert-gamma-beta", "bert-backbone", "roberta", "gpt2", "llama-shards"])
    def test_a_classifier_is_merged(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        evaluation = evaluated(name, root, "classifier", LINEAR.model_copy(update={"bias": "all"}))
        evaluation.write(tmp_path / "adapter")
        with monkeypatch.context() as absent:
            absent.setitem(sys.modules, "transformers", None)
            merge(tmp_path / "adapter", evaluation.base, tmp_path / "merged")
        model, loading = evaluation.automatic.from_pretrained(tmp_path / "merged", output_loading_info=True)
        assert not loading["missing_keys"]
        # Which token pads is a question for the library too.
        model.config.pad_token_id = evaluation.session.model.config.pad_token_id
        torch.testing.assert_close(evaluation.logits_of(model), evaluation.logits, rtol=0, atol=1e-4)
        assert config_of(tmp_path / "merged")["architectures"] == [type(model).__name__]

    @pytest.mark.parametrize(
        ("name", "fields", "words"),
        [
            ("gemma3-vision", {}, "no tensor 'model.language_model.layers.*transformers 5 must be installed"),
            (
                "llama-tied",
                {"modules_to_save": ("embed_tokens",)},
                "'model.embed_tokens.weight' may share its tensor",
            ),
            ("gpt2", {"target_modules": ("wte",)}, "'transformer.wte.weight' may share its tensor"),
            ("llama-tied", {"modules_to_save": ("lm_head",)}, "lm_head.weight"),
        ],
    )
    def test_what_only_the_library_can_tell_is_refused_by_name(
        self,
        root: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        fields: Any,
        words: str,
    ) -> None:
        evaluation = evaluated(name, root, "causal_lm", LINEAR.model_copy(update=fields))
        evaluation.write(tmp_path / "adapter")
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(MergeError, match=words):
            merge(tmp_path / "adapter", evaluation.base, tmp_path / "merged")


class TestConfiguration:
    def test_names_and_base_are_those_that_the_provenance_tells(self, root: Path, tmp_path: Path) -> None:
        evaluation = evaluated("bert-with-two-labels", root, "classifier", LINEAR)
        adapter = evaluation.write(tmp_path / "adapter")
        known = {
            "definition": {"task": {"labels": ["red", "green", "blue"]}},
            "base_weights_digest": evaluation.session.facts.weights_digest,
        }
        (adapter / "provenance.json").write_text(json.dumps(known), encoding="utf-8")
        merge(adapter, evaluation.base, tmp_path / "merged")
        config = config_of(tmp_path / "merged")
        assert config["id2label"] == {"0": "red", "1": "green", "2": "blue"}
        assert config["label2id"] == {"red": 0, "green": 1, "blue": 2}
        with pytest.raises(MergeError, match="is not the base of this adapter: its weights are sha256:"):
            merge(adapter, zoo.folder("bert", root), tmp_path / "other")

    @pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "gemma3-vision-pad-3"])
    def test_a_decoders_classifier_reads_a_batch_as_it_reads_one_text(
        self, root: Path, tmp_path: Path, name: str
    ) -> None:
        evaluation = evaluated(name, root, "classifier", LINEAR)
        merge(evaluation.write(tmp_path / "adapter"), evaluation.base, tmp_path / "merged")
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
        tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "merged"))
        texts = ["the cat two is red", "a dog"]
        with torch.no_grad():
            batch = model(**tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")).logits
            alone = [model(**tokenizer([text], return_tensors="pt")).logits for text in texts]
        torch.testing.assert_close(batch, torch.cat(alone), rtol=0, atol=1e-4)

    def test_two_matrices_are_said_to_be_two_in_the_nested_configuration_too(
        self, root: Path, tmp_path: Path
    ) -> None:
        lora = LINEAR.model_copy(update={"modules_to_save": ("lm_head",)})
        evaluation = evaluated("gemma3-vision", root, "causal_lm", lora)
        merge(evaluation.write(tmp_path / "adapter"), evaluation.base, tmp_path / "merged")
        config = config_of(tmp_path / "merged")
        assert (config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]) == (False, False)

    def test_the_number_format_is_that_of_the_files(self, root: Path, tmp_path: Path) -> None:
        evaluation = evaluated("llama", root, "causal_lm", LINEAR)
        path = tmp_path / "base" / "config.json"
        path.parent.mkdir()
        save_file(
            {n: v.half() for n, v in load_file(evaluation.base / "model.safetensors").items()},
            tmp_path / "base" / "model.safetensors",
        )
        path.write_text(json.dumps(config_of(evaluation.base) | {"dtype": "float32", "torch_dtype": "float32"}))
        merge(evaluation.write(tmp_path / "adapter"), tmp_path / "base", tmp_path / "merged")
        config = config_of(tmp_path / "merged")
        assert (config["dtype"], config["torch_dtype"]) == ("float16", "float16")
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.float16

    def test_whole_alphas_are_written_as_integers(self, root: Path, tmp_path: Path) -> None:
        lora = LINEAR.model_copy(update={"target_modules": ("q_proj",), "alpha_pattern": {"q_proj": 8.0}})
        folder = evaluated("llama", root, "causal_lm", lora).write(tmp_path / "adapter")
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        alphas = [config["lora_alpha"], *config["alpha_pattern"].values()]
        assert [json.dumps(alpha) for alpha in alphas] == ["4", "8", "8"]
