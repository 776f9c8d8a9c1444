"""Exported files: PEFT opens them, and their bytes are a function of the tensors."""

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from federated.contract import Adapter
from federated.export.adapter_files import write_adapter
from federated.payloads.payload import Payload
from federated.trainable import Full, Initialization, Lora, ModelFacts, Prefix, TensorFacts
from tests.support.bad_texts import SHOWN
from tests.support.tiny_models import bert_folder, llama_folder

CARD = {"Algorithm": "fedavg", "Rounds": 3, "Loss | mean": 0.25, "Clients": ["bank", "clinic"]}


def facts(model_type: str, task_type: Any, **fields: Any) -> ModelFacts:
    zeros = Initialization(kind="zeros")
    tensors = (TensorFacts(name="x", shape=(1,), dtype="F32", initialisation=zeros),)
    sizes = {"layers": 2, "hidden": 16, "kv_width": 16, "kv_heads": 4} | fields
    return ModelFacts(
        model_type=model_type, task_type=task_type, tensors=tensors, weights_digest="sha256:" + "0" * 64, **sizes
    )


def lora_tensors(modules: list[str], width: int, outputs: int, rank: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for module in modules:
        tensors[f"{module}.lora_A.weight"] = torch.randn(rank, width, generator=generator)
        tensors[f"{module}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator)
    return tensors


def bert_adapter() -> tuple[Adapter, Lora, ModelFacts]:
    modules = [f"bert.encoder.layer.{layer}.attention.self.query" for layer in range(2)]
    tensors = lora_tensors(modules, 16, 16, rank=3)
    tensors |= {"classifier.weight": torch.randn(3, 16), "classifier.bias": torch.randn(3)}
    model = facts("bert", "SEQ_CLS", target_modules=("query",), modules_to_save=("classifier",))
    return Adapter("peft", tensors), Lora(r=3, lora_alpha=6), model


class TestPeft:
    def test_a_classifiers_adapter_opens_with_every_tensor_in_place(self, tmp_path: Path) -> None:
        base = bert_folder(tmp_path / "base")
        adapter, trainable, model = bert_adapter()
        written = write_adapter(tmp_path / "adapter", adapter, trainable, model, "acme/bert", CARD)
        assert [path.name for path in written] == ["adapter_model.safetensors", "adapter_config.json", "README.md"]
        opened = peft.PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(base, num_labels=3), tmp_path / "adapter"
        )
        parameters = dict(opened.named_parameters())
        for name, value in adapter.tensors.items():
            module, _, leaf = name.rpartition(".")
            place = f"{module}.default.{leaf}" if "lora" in name else f"{module}.modules_to_save.default.{leaf}"
            assert torch.equal(parameters[f"base_model.model.{place}"], value)
        assert opened.peft_config["default"].lora_alpha == 6
        assert opened.peft_config["default"].base_model_name_or_path == "acme/bert"

    def test_a_trained_bias_of_an_adapted_module_is_where_peft_looks_for_it(self, tmp_path: Path) -> None:
        base = bert_folder(tmp_path / "base")
        adapter, _, model = bert_adapter()
        name = "bert.encoder.layer.1.attention.self.query.bias"
        changed = Adapter("peft", {**adapter.tensors, name: torch.full((16,), 0.25)})
        trainable = Lora(r=3, lora_alpha=6, bias="lora_only")
        write_adapter(tmp_path / "adapter", changed, trainable, model, "acme/bert", CARD)
        opened = peft.PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(base, num_labels=3), tmp_path / "adapter"
        )
        query = opened.base_model.model.bert.encoder.layer[1].attention.self.query
        assert torch.equal(query.base_layer.bias, torch.full((16,), 0.25))

    def test_a_decoders_prefix_opens_and_is_used(self, tmp_path: Path) -> None:
        base = llama_folder(tmp_path / "base")
        prompt = torch.randn(5, 2 * 2 * 12)
        model = facts("llama", "CAUSAL_LM", kv_width=12, kv_heads=2)
        write_adapter(
            tmp_path / "adapter", Adapter("peft", {"prompt_embeddings": prompt}), Prefix(num_virtual_tokens=5), model,
            "acme/llama", {},
        )  # fmt: skip
        opened = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
        assert torch.equal(opened.prompt_encoder["default"].embedding.weight, prompt)
        tokens = torch.tensor([[4, 5, 6]])
        plain = AutoModelForCausalLM.from_pretrained(base)(input_ids=tokens).logits
        assert not torch.allclose(opened(input_ids=tokens).logits, plain)

    def test_what_the_algorithm_says_of_the_configuration_wins(self, tmp_path: Path) -> None:
        adapter, trainable, model = bert_adapter()
        changed = Adapter("peft", adapter.tensors, {"r": 7, "rank_pattern": {"query": 3}})
        write_adapter(tmp_path, changed, trainable, model, "acme/bert", {})
        config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
        assert (config["r"], config["rank_pattern"], config["lora_alpha"]) == (7, {"query": 3}, 6)

    def test_the_same_tensors_give_the_same_files_in_whatever_order_they_come(self, tmp_path: Path) -> None:
        adapter, trainable, model = bert_adapter()
        backwards = Adapter("peft", dict(reversed(adapter.tensors.items())))
        contents = [
            [path.read_bytes() for path in write_adapter(tmp_path / name, one, trainable, model, "acme/bert", CARD)]
            for name, one in (("a", adapter), ("b", backwards))
        ]
        assert contents[0] == contents[1]

    def test_the_tensor_file_says_what_readers_of_torch_files_look_for(self, tmp_path: Path) -> None:
        adapter, trainable, model = bert_adapter()
        tensors = write_adapter(tmp_path, adapter, trainable, model, "acme/bert", {})[0]
        assert b'"__metadata__":{"format":"pt"}' in tensors.read_bytes()[:200]
        assert len(load_file(tensors)) == len(adapter.tensors)

    def test_weights_trained_in_full_are_refused(self, tmp_path: Path) -> None:
        adapter, _, model = bert_adapter()
        with pytest.raises(ValueError, match="in full"):
            write_adapter(tmp_path, adapter, Full(), model, "acme/bert", {})


class TestOthers:
    def test_the_card_names_the_base_and_shows_its_rows(self, tmp_path: Path) -> None:
        adapter, trainable, model = bert_adapter()
        text = write_adapter(tmp_path, adapter, trainable, model, 'acme/"bert"', CARD)[-1].read_text(encoding="utf-8")
        assert text.startswith('---\nbase_model: "acme/\\"bert\\""\nlibrary_name: peft\n')
        assert "| `Loss \\| mean` | 0.25 |\n" in text
        assert '| Clients | `["bank", "clinic"]` |\n' in text

    @pytest.mark.parametrize("text", SHOWN.values(), ids=list(SHOWN))
    def test_a_name_in_the_card_stays_in_its_cell_and_means_nothing(self, tmp_path: Path, text: str) -> None:
        adapter, trainable, model = bert_adapter()
        card = {"federation": text + "`<img src=x>`[a](https://evil.example) | b \\| \\", "round": 3}
        content = write_adapter(tmp_path, adapter, trainable, model, text, card)[-1].read_text(encoding="utf-8")
        lines = content.split("\n")
        (row,) = [line for line in lines if line.startswith("| federation |")]
        assert re.fullmatch(r"\| federation \| `([^`|\\]|\\\|)*` \|", row)
        assert lines[lines.index(row) + 1] == "| round | 3 |"
        assert all(line.isprintable() for line in lines)

    def test_a_ledger_is_a_payload(self, tmp_path: Path) -> None:
        _, _, model = bert_adapter()
        ledger = Adapter("ledger", {"steps": torch.arange(3)}, facts={"directions": 4})
        written = write_adapter(tmp_path, ledger, Full(), model, "acme/bert", CARD)
        assert [path.name for path in written] == ["ledger.safetensors", "README.md"]
        opened = Payload.open(written[0])
        assert (opened["steps"].tolist(), opened.facts) == ([0, 1, 2], {"directions": 4})
