"""Merge: a merged folder is equal to the result of PEFT's own merge."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from federated.merge import MergeError, main, merge
from tests.support.tiny_models import bert_folder, llama_folder

TOKENS = torch.tensor([[4, 5, 6, 7], [8, 9, 10, 11]])


def randomized(model: Any, folder: Path, **fields: Any) -> Any:
    """The model with a LoRA of random factors and heads, saved to `folder`."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**fields))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    wrapped.save_pretrained(folder, save_embedding_layers="embed_tokens" in fields["target_modules"])
    return wrapped.eval()


def merged_logits(out: Path, kind: Any, **fields: Any) -> torch.Tensor:
    model, loading = kind.from_pretrained(out, output_loading_info=True, **fields)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=TOKENS).logits
    return logits


def assert_as_peft(wrapped: Any, out: Path, kind: Any, **fields: Any) -> None:
    with torch.no_grad():
        by_adapter = wrapped(input_ids=TOKENS).logits
        unloaded = wrapped.merge_and_unload()(input_ids=TOKENS).logits
    found = merged_logits(out, kind, **fields)
    torch.testing.assert_close(found, unloaded, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, by_adapter, rtol=1e-4, atol=1e-4)


class TestMerge:
    @pytest.mark.parametrize(
        "fields",
        [
            {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
            {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
            {
                "r": 4,
                "lora_alpha": 8,
                "target_modules": ["q_proj", "k_proj", "down_proj"],
                "rank_pattern": {"k_proj": 2, "layers.1.mlp.down_proj": 6},
                "alpha_pattern": {"^model.layers.0.self_attn.q_proj|o_proj": 32, "down_proj": 1},
            },
            {"r": 2, "target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
        ],
        ids=["all-linear", "rslora", "patterns", "embedding-and-saved-head"],
    )
    def test_a_decoder(self, tmp_path: Path, fields: dict[str, Any]) -> None:
        base = llama_folder(tmp_path / "base")
        model = AutoModelForCausalLM.from_pretrained(base)
        wrapped = randomized(model, tmp_path / "adapter", task_type="CAUSAL_LM", **fields)
        merge(tmp_path / "adapter", base, tmp_path / "out")
        assert_as_peft(wrapped, tmp_path / "out", AutoModelForCausalLM)

    @pytest.mark.parametrize("shard_bytes", [None, 6000])
    def test_a_classifier_whose_base_lacks_the_head_in_one_file_and_in_shards(
        self, tmp_path: Path, shard_bytes: int | None
    ) -> None:
        base = bert_folder(tmp_path / "base", shard_bytes=shard_bytes)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
        wrapped = randomized(
            model, tmp_path / "adapter", task_type="SEQ_CLS", r=4, bias="lora_only", target_modules=["query"]
        )
        merge(tmp_path / "adapter", base, tmp_path / "out")
        assert_as_peft(wrapped, tmp_path / "out", AutoModelForSequenceClassification)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
            path.name for path in base.iterdir()
        )
        if shard_bytes:
            index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text(encoding="utf-8"))
            files = {name: set(load_file(tmp_path / "out" / name)) for name in set(index["weight_map"].values())}
            assert len(files) > 1
            assert all(name in files[file] for name, file in index["weight_map"].items())
            assert sum(map(len, files.values())) == len(index["weight_map"])

    def test_beside_a_single_file_an_index_counts_for_nothing(self, tmp_path: Path) -> None:
        base = llama_folder(tmp_path / "base")
        (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "shard.safetensors"}}))
        fields = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
        wrapped = randomized(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter", **fields)
        merge(tmp_path / "adapter", base, tmp_path / "out")
        assert_as_peft(wrapped, tmp_path / "out", AutoModelForCausalLM)

    def test_maps_that_are_stored_transposed(self, tmp_path: Path) -> None:
        config = GPT2Config(
            vocab_size=20, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1
        )
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        fields: dict[str, Any] = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
        wrapped = randomized(model, tmp_path / "adapter", task_type="CAUSAL_LM", r=3, **fields)
        merge(tmp_path / "adapter", tmp_path / "base", tmp_path / "out")
        assert_as_peft(wrapped, tmp_path / "out", AutoModelForCausalLM)

    def test_the_dtype_of_the_base_is_kept_and_rounded_to_once(self, tmp_path: Path) -> None:
        base = llama_folder(tmp_path / "base")
        halved = {name: value.bfloat16() for name, value in load_file(base / "model.safetensors").items()}
        save_file(halved, base / "model.safetensors", metadata={"format": "pt"})
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        wrapped = randomized(model, tmp_path / "adapter", task_type="CAUSAL_LM", r=2, target_modules=["o_proj"])
        merge(tmp_path / "adapter", base, tmp_path / "out")
        out = load_file(tmp_path / "out" / "model.safetensors")
        assert {value.dtype for value in out.values()} == {torch.bfloat16}
        expected = wrapped.merge_and_unload().state_dict()
        name = "model.layers.1.self_attn.o_proj.weight"
        torch.testing.assert_close(out[name], expected[name].bfloat16(), rtol=2**-7, atol=1e-4)
        assert torch.equal(out["model.norm.weight"], halved["model.norm.weight"])


class TestRefusals:
    @pytest.fixture
    def folders(self, tmp_path: Path) -> tuple[Path, Path, Path]:
        base = llama_folder(tmp_path / "base")
        randomized(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter", r=2, target_modules=["q_proj"])
        return tmp_path / "adapter", base, tmp_path / "out"

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"peft_type": "PREFIX_TUNING"}, "only LORA"),
            ({"use_dora": True}, "use_dora cannot be merged"),
            ({"alpha_pattern": {"(a|a)+b": 8}}, r"alpha_pattern: '\(a\|a\)\+b' is not a pattern"),
            ({"alpha_pattern": {r"layers\.0": 8}}, "alpha_pattern: .* is not a pattern"),
            ({"alpha_pattern": {"q_proj*": 8}}, "alpha_pattern: 'q_proj\\*' is a regular expression"),
            ({"alpha_pattern": {"a" * 513: 8}}, "alpha_pattern: a pattern has at most 512"),
            ({"alpha_pattern": {"q_proj": "8"}}, "alpha_pattern is not a mapping from names"),
            ({"alpha_pattern": ["q_proj"]}, "alpha_pattern is not a mapping from names"),
            ({"lora_alpha": None}, "lora_alpha 'None' is not a number"),
            ({"lora_alpha": 10**400}, "lora_alpha '1000000"),
        ],
    )
    def test_another_kind_of_adapter(self, folders: tuple[Path, Path, Path], change: Any, words: str) -> None:
        path = folders[0] / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
        with pytest.raises(MergeError, match=words):
            merge(*folders)
        assert not folders[2].exists()

    def test_a_module_that_the_base_does_not_have(self, folders: tuple[Path, Path, Path]) -> None:
        path = folders[0] / "adapter_model.safetensors"
        renamed = {name.replace("layers.1", "layers.9"): value for name, value in load_file(path).items()}
        save_file(renamed, path)
        with pytest.raises(MergeError, match=r"adapted module 'model\.layers\.9\.self_attn\.q_proj'"):
            merge(*folders)

    def test_half_of_a_pair(self, folders: tuple[Path, Path, Path]) -> None:
        path = folders[0] / "adapter_model.safetensors"
        save_file({name: value for name, value in load_file(path).items() if "lora_B" not in name}, path)
        with pytest.raises(MergeError, match=r"only lora_A of module 'model\.layers\.0"):
            merge(*folders)

    def test_factors_of_another_width(self, folders: tuple[Path, Path, Path]) -> None:
        path = folders[0] / "adapter_model.safetensors"
        wider = {n: torch.zeros(2, 99) if "lora_A" in n else value for n, value in load_file(path).items()}
        save_file(wider, path)
        with pytest.raises(MergeError, match=r"its factors \[24, 99\]"):
            merge(*folders)

    def test_a_base_without_safetensors(self, folders: tuple[Path, Path, Path]) -> None:
        (folders[1] / "model.safetensors").unlink()
        with pytest.raises(MergeError, match=r"neither model\.safetensors nor"):
            merge(*folders)

    def test_a_folder_with_something_in_it(self, folders: tuple[Path, Path, Path]) -> None:
        folders[2].mkdir()
        (folders[2] / "mine.txt").touch()
        with pytest.raises(MergeError, match="is not empty"):
            merge(*folders)


class TestCommandLine:
    def test_it_merges_without_transformers_and_peft(self, tmp_path: Path) -> None:
        base = llama_folder(tmp_path / "base")
        randomized(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter", r=2, target_modules=["q_proj"])
        program = (
            "import sys; from federated.merge import main; code = main(sys.argv[1:])\n"
            "print(code, sorted({'transformers', 'peft'} & set(sys.modules)))"
        )
        folders = [str(tmp_path / "adapter"), str(base), str(tmp_path / "out")]
        answer = subprocess.run([sys.executable, "-c", program, *folders], check=True, capture_output=True, text=True)
        assert answer.stdout.split(maxsplit=1) == ["0", "[]\n"]
        assert "model.safetensors" in os.listdir(tmp_path / "out")  # noqa: PTH208

    def test_what_is_missing_is_one_line_and_exit_one(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([str(tmp_path), str(tmp_path), str(tmp_path / "out")]) == 1
        assert capsys.readouterr().err == f"merge: {tmp_path / 'adapter_config.json'} is missing\n"
