"""Tests of ledgers over transformers and PEFT: ledger and base model's folder give the trained model."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from federated import simulation
from federated.contract import ClientFacts, LedgerInvalid, RoundFacts
from federated.export.adapter_files import write_adapter
from federated.merge import MergeError, merge
from federated.payloads.payload import Payload
from federated.protocol import Work
from federated.registry import client_half, ledger_weights, make_config, server_half
from federated.simulation import Result, SimulatedFederation
from federated.trainable import Full, Lora
from tests.support import tiny_models
from tests.support.training import COLORS, REPEAT, logits, work_of
from worker_agent.settings import AgentSettings
from worker_agent.training.session import SessionFactory

CONFIG: dict[str, Any] = {"local_steps": 5, "batch_size": 4, "candidates": 128, "learning_rate": 1e-3}


class TrainedFederation:
    """A short federation on one of the node's models, and its export in a folder."""

    def __init__(self, node: AgentSettings, folder: Path, model: str, trainable: Lora | Full, **config: Any) -> None:
        task = REPEAT if "llama" in model else COLORS
        self.bench = SessionFactory(node)
        self.base = Path(node.models[model])
        self.config = make_config("fedkseed", CONFIG | config)
        self.work: Work = work_of(model, trainable, task)
        self.data = "colors" if task is COLORS else "instructions"
        federation = SimulatedFederation("fedkseed", self.config, trainable, 2, 2, seed=self.work.federation_seed)
        self.result: Result = simulation.run(
            federation, lambda ordinal, seed: self.bench.open(self.work, self.data, seed, {})
        )
        facts = self.bench.open(self.work, self.data, 0, {}).facts
        self.folder = folder / "export"
        write_adapter(self.folder, self.result.adapter, trainable, facts, str(self.base), {})

    def evaluated_logits(self) -> Tensor:
        """Those of the session that applied the last state."""
        session = self.bench.open(self.work, self.data, 0, {})
        client = ClientFacts(1, "one", session.examples, {}, {}, None, 0)
        server = server_half("fedkseed", self.config, self.work.trainable)
        instruction = server.plan(self.result.state, [client], RoundFacts(3, "evaluate", 2, 2))[1]
        client_half("fedkseed", self.config, self.work.trainable).apply(instruction, session, None, "shared")
        return logits(session.model)

    def open_model(self, folder: Path) -> Any:
        """A model folder as any user opens it."""
        kind: Any = AutoModelForSequenceClassification if self.data == "colors" else AutoModelForCausalLM
        model, loading = kind.from_pretrained(folder, output_loading_info=True)
        assert not loading["missing_keys"]
        assert not loading["unexpected_keys"]
        return model


class TestMerging:
    @pytest.mark.parametrize(
        ("model", "trainable", "config"),
        [
            ("bert", Full(), {}),
            ("bert-without-pooler", Full(), {"variant": "pro"}),
            ("roberta", Full(names=("*.layer.1.*", "classifier.*")), {}),
            ("bert", Full(), {"perturb": ["classifier.*", "*.query.*"]}),
            ("llama", Full(), {"directions": "rademacher"}),
            ("tied-llama", Full(), {}),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_the_merged_folder_is_the_model_that_was_evaluated(
        self, node: AgentSettings, tmp_path: Path, model: str, trainable: Full, config: dict[str, Any]
    ) -> None:
        run = TrainedFederation(node, tmp_path, model, trainable, **config)
        assert run.result.adapter.kind == "ledger"
        merge(run.folder, run.base, tmp_path / "merged")
        reference = run.evaluated_logits()
        actual = logits(run.open_model(tmp_path / "merged"))
        torch.testing.assert_close(actual, reference, rtol=0, atol=1e-6)
        before = logits(run.bench.open(run.work, run.data, 0, {}).model)
        assert not torch.allclose(before, reference, rtol=0, atol=1e-5)

    def test_a_base_in_bfloat16_keeps_its_format_and_is_rounded_to_once(
        self, node: AgentSettings, tmp_path: Path
    ) -> None:
        base = tiny_models.llama_folder(tmp_path / "base")
        tensors = {name: value.bfloat16() for name, value in load_file(base / "model.safetensors").items()}
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
        bfloat16 = node.model_copy(update={"models": {**node.models, "llama-bfloat16": str(base)}})
        run = TrainedFederation(bfloat16, tmp_path, "llama-bfloat16", Full())
        merge(run.folder, base, tmp_path / "merged")
        differences = ledger_weights(Payload.open(run.folder / "ledger.safetensors")).differences
        out = load_file(tmp_path / "merged" / "model.safetensors")
        assert {value.dtype for value in out.values()} == {torch.bfloat16}
        assert all(
            torch.equal(out[name], (tensors[name].float() + differences[name]).bfloat16()) for name in differences
        )

    def test_another_base_is_refused(self, node: AgentSettings, tmp_path: Path) -> None:
        run = TrainedFederation(node, tmp_path, "bert", Full())
        other = tiny_models.bert_folder(tmp_path / "other", seed=1)
        with pytest.raises(MergeError, match="is not the base of this ledger: its weights are sha256:"):
            merge(run.folder, other, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()

    def test_a_base_in_shards_is_known_by_all_of_them(self, node: AgentSettings, tmp_path: Path) -> None:
        base = tiny_models.bert_folder(tmp_path / "base", shard_bytes=6000)
        sharded_node = node.model_copy(update={"models": {**node.models, "sharded": str(base)}})
        run = TrainedFederation(sharded_node, tmp_path, "sharded", Full())
        merge(run.folder, base, tmp_path / "merged")
        actual = logits(run.open_model(tmp_path / "merged"))
        torch.testing.assert_close(actual, run.evaluated_logits(), rtol=0, atol=1e-6)


class TestExport:
    @pytest.mark.parametrize("model", ["bert", "bert-without-pooler", "llama"])
    def test_factors_open_in_peft_as_the_model_that_was_evaluated(
        self, node: AgentSettings, tmp_path: Path, model: str
    ) -> None:
        run = TrainedFederation(node, tmp_path, model, Lora(r=2))
        kind: Any = AutoModelForCausalLM if model == "llama" else AutoModelForSequenceClassification
        labels: dict[str, Any] = {} if model == "llama" else {"num_labels": 3}
        peft_model = peft.PeftModel.from_pretrained(kind.from_pretrained(run.base, **labels), run.folder)
        assert torch.equal(logits(peft_model), run.evaluated_logits())

    def test_a_ledger_holds_scalars_alone(self, node: AgentSettings, tmp_path: Path) -> None:
        run = TrainedFederation(node, tmp_path, "bert", Full())
        ledger = Payload.open(run.folder / "ledger.safetensors")
        assert {name: tuple(tensor.shape) for name, tensor in ledger.items()} == {"accumulators": (128,)}


class TestRefusedLedgers:
    @pytest.fixture
    def ledger(self, node: AgentSettings, tmp_path: Path) -> Payload:
        folder = TrainedFederation(node, tmp_path, "bert", Full()).folder
        return Payload.decode((folder / "ledger.safetensors").read_bytes())

    @pytest.mark.parametrize(
        ("facts", "words"),
        [
            ({"algorithm": "fedother"}, "fact 'algorithm' is 'fedother', which is no algorithm here"),
            ({"algorithm": None}, "fact 'algorithm' is None"),
            ({"directions_digest": "sha256:other"}, "the hadamard directions of this machine differ"),
            ({"candidates": 256}, r"tensor 'accumulators' has shape \[128\], expected \[256\]"),
            ({"changed": [{"name": "x"}]}, "'shape'"),
        ],
    )
    def test_says_why(self, ledger: Payload, facts: dict[str, Any], words: str) -> None:
        with pytest.raises(LedgerInvalid, match=words):
            ledger_weights(ledger.with_facts(**facts))

    def test_a_missing_fact_is_named(self, ledger: Payload) -> None:
        facts = {name: value for name, value in ledger.facts.items() if name != "seed"}
        with pytest.raises(LedgerInvalid, match="the ledger lacks 'seed'"):
            ledger_weights(Payload(dict(ledger), facts))
