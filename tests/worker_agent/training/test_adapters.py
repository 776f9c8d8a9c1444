"""A trainable on a base model: names, shapes, initial values, and an export that PEFT loads with the same logits."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from federated.contract import Adapter, AnyTrainable
from federated.export.adapter_files import write_adapter
from federated.maths.initialization import start
from federated.protocol import TaskDefinition
from federated.trainable import Full, Lora, Prefix, TensorFacts
from tests.support.training import COLORS, FEDERATION_SEED, REPEAT, logits_of, make_node, train_some_steps, work_of
from worker_agent.settings import AgentSettings
from worker_agent.training.job_errors import ModelError
from worker_agent.training.session import Session, open_session

QUERY_OF_0 = "encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> AgentSettings:
    return make_node(tmp_path_factory.mktemp("node"))


def opened(
    node: AgentSettings, model: str, trainable: AnyTrainable, task: TaskDefinition = COLORS, seed: int = 3
) -> Session:
    dataset = "instructions" if task.task == "causal_lm" else "colors"
    return open_session(work_of(model, trainable, task), dataset, node, seed, {})


def facts_by_name(session: Session) -> dict[str, TensorFacts]:
    return {facts.name: facts for facts in session.facts.tensors}


def base_of(node: AgentSettings, model: str, task: TaskDefinition) -> Any:
    """The base model as any user of PEFT loads it."""
    if task.task == "causal_lm":
        return AutoModelForCausalLM.from_pretrained(node.models[model])
    base = AutoModelForSequenceClassification.from_pretrained(node.models[model], num_labels=3)
    base.config.pad_token_id = 0
    return base


EXPORTED: dict[str, tuple[str, AnyTrainable, TaskDefinition]] = {
    "bert": ("bert", Lora(r=2), COLORS),
    "bert, all linear": ("bert", Lora(r=2, target_modules="all-linear", use_rslora=True), COLORS),
    "bert, by pattern": ("bert", Lora(r=4, target_modules="*query", rank_pattern={QUERY_OF_0: 1}), COLORS),
    "bert, one layer": ("bert", Lora(r=2, target_modules=("query",), layers_to_transform=(1,)), COLORS),
    "bert without pooler": ("bert-without-pooler", Lora(r=2), COLORS),
    "roberta": ("roberta", Lora(r=2), COLORS),
    "roberta, last layer of the head": ("roberta", Lora(r=2, modules_to_save=("classifier.out_proj",)), COLORS),
    "roberta, no head": ("roberta", Lora(r=2, modules_to_save=()), COLORS),
    "llama classifier": ("llama", Lora(r=2), COLORS),
    "llama": ("llama", Lora(r=2, target_modules=("q_proj", "v_proj", "embed_tokens")), REPEAT),
    "tied llama": ("tied-llama", Lora(r=2), REPEAT),
    "bert prefix": ("bert", Prefix(num_virtual_tokens=3), COLORS),
    "bert prefix without pooler": ("bert-without-pooler", Prefix(num_virtual_tokens=3), COLORS),
    "roberta prefix": ("roberta", Prefix(num_virtual_tokens=3), COLORS),
    "llama classifier prefix": ("llama", Prefix(num_virtual_tokens=3), COLORS),
    "llama prefix": ("llama", Prefix(num_virtual_tokens=3), REPEAT),
}


class TestExport:
    @pytest.mark.parametrize("case", EXPORTED)
    def test_peft_opens_a_trained_adapter_with_the_same_logits(
        self, node: AgentSettings, tmp_path: Path, case: str
    ) -> None:
        model, trainable, task = EXPORTED[case]
        session = opened(node, model, trainable, task)
        _, untrained = logits_of(session)
        train_some_steps(session)
        tensors = session.read() | {facts.name: session.start(facts.name) for facts in session.facts.seeded}
        write_adapter(tmp_path, Adapter("peft", tensors), trainable, session.facts, "base", {})
        adapter = PeftModel.from_pretrained(base_of(node, model, task), str(tmp_path)).eval()
        inputs, expected = logits_of(session)
        with torch.no_grad():
            found = adapter(**inputs).logits
        assert torch.equal(found, expected)
        assert not torch.allclose(found, untrained, atol=1e-4)

    def test_the_configuration_names_what_peft_resolved(self, node: AgentSettings, tmp_path: Path) -> None:
        trainable = Lora(r=2)
        session = opened(node, "bert-without-pooler", trainable)
        write_adapter(tmp_path, Adapter("peft", session.read()), trainable, session.facts, "base", {})
        config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["target_modules"] == ["query", "value"]
        assert config["modules_to_save"] == ["bert.pooler.dense", "classifier"]


class TestFacts:
    def test_lora_factors_and_a_new_head_have_canonical_names_and_pefts_starts(self, node: AgentSettings) -> None:
        session = opened(node, "bert", Lora(r=2, target_modules=("query",)))
        told = [(facts.name, facts.shape, facts.initialisation.kind) for facts in session.facts.tensors]
        assert told == [
            ("bert.encoder.layer.0.attention.self.query.lora_A.weight", (2, 16), "uniform"),
            ("bert.encoder.layer.0.attention.self.query.lora_B.weight", (16, 2), "zeros"),
            ("bert.encoder.layer.1.attention.self.query.lora_A.weight", (2, 16), "uniform"),
            ("bert.encoder.layer.1.attention.self.query.lora_B.weight", (16, 2), "zeros"),
            ("classifier.bias", (3,), "zeros"),
            ("classifier.weight", (3, 16), "normal"),
        ]
        scales = {facts.name: facts.initialisation.scale for facts in session.facts.tensors}
        assert scales["bert.encoder.layer.0.attention.self.query.lora_A.weight"] == 1 / math.sqrt(16)
        assert scales["classifier.weight"] == 0.2

    def test_a_grouped_decoder_tells_the_joint_width_of_its_key_value_heads(self, node: AgentSettings) -> None:
        session = opened(node, "llama", Prefix(num_virtual_tokens=3, init_std=0.5), REPEAT)
        facts = session.facts
        assert (facts.layers, facts.hidden, facts.kv_heads, facts.kv_width) == (2, 16, 2, 12)
        assert [(tensor.name, tensor.shape) for tensor in facts.tensors] == [("prompt_embeddings", (3, 2 * 2 * 12))]
        assert facts.tensors[0].initialisation.model_dump() == {"kind": "normal", "scale": 0.5}

    def test_what_the_files_lack_and_nobody_trains_is_seeded_the_same_everywhere(self, node: AgentSettings) -> None:
        first = opened(node, "bert-without-pooler", Lora(r=2), seed=1)
        other = opened(node, "bert-without-pooler", Lora(r=2), seed=2)
        assert [facts.name for facts in first.facts.seeded] == ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]
        assert torch.equal(logits_of(first)[1], logits_of(other)[1])

    def test_a_part_of_the_head_can_be_trained_alone(self, node: AgentSettings) -> None:
        session = opened(node, "roberta", Lora(r=2, modules_to_save=("classifier.out_proj",)))
        heads = [name for name in session.trainables if name.startswith("classifier")]
        assert heads == ["classifier.out_proj.bias", "classifier.out_proj.weight"]
        assert [facts.name for facts in session.facts.seeded] == ["classifier.dense.bias", "classifier.dense.weight"]

    def test_all_weights_are_named_once_and_start_from_the_base_model(self, node: AgentSettings) -> None:
        session = opened(node, "tied-llama", Full(), REPEAT)
        assert list(session.trainables) == sorted(name for name, _ in session.model.named_parameters())
        assert "lm_head.weight" not in session.trainables
        assert {facts.initialisation.kind for facts in session.facts.tensors} == {"base"}

    def test_weights_are_chosen_by_pattern(self, node: AgentSettings) -> None:
        session = opened(node, "llama", Full(names=("*.layers.1.mlp.*",)), REPEAT)
        assert list(session.trainables) == [
            f"model.layers.1.mlp.{part}_proj.weight" for part in ("down", "gate", "up")
        ]
        trained = {name for name, value in session.model.named_parameters() if value.requires_grad}
        assert trained == set(session.trainables)

    def test_biases_travel_as_differences_to_the_base_model(self, node: AgentSettings) -> None:
        session = opened(node, "bert", Lora(r=2, target_modules=("query",), bias="lora_only"))
        name = "bert.encoder.layer.0.attention.self.query.bias"
        assert facts_by_name(session)[name].initialisation.kind == "base"
        assert session.read([name])[name].count_nonzero() == 0

    @pytest.mark.parametrize(
        ("trainable", "told"),
        [
            (Lora(target_modules=("nowhere",)), "nowhere"),
            (Full(names=("nothing.*",)), r"names: 'nothing\.\*' fits no weight of a bert"),
        ],
    )
    def test_a_trainable_that_fits_nothing_is_refused(
        self, node: AgentSettings, trainable: AnyTrainable, told: str
    ) -> None:
        with pytest.raises(ModelError, match=told) as caught:
            opened(node, "bert", trainable)
        assert caught.value.code == "trainable_invalid"


class TestStarts:
    @pytest.mark.parametrize("trainable", [Lora(r=2), Prefix(num_virtual_tokens=2)])
    def test_every_tensor_starts_as_the_federations_seed_says_and_not_as_peft_drew_it(
        self, node: AgentSettings, trainable: AnyTrainable
    ) -> None:
        session = opened(node, "bert", trainable)
        for name, facts in facts_by_name(session).items():
            assert torch.equal(session.trainables[name].detach(), start(FEDERATION_SEED, facts)), name

    def test_a_head_in_the_files_starts_anew(self, node: AgentSettings, tmp_path: Path) -> None:
        stored = base_of(node, "bert", COLORS)
        stored.save_pretrained(tmp_path / "classifier")
        for file in Path(node.models["bert"]).glob("tokenizer*"):
            (tmp_path / "classifier" / file.name).write_bytes(file.read_bytes())
        models = node.models | {"classifier": str(tmp_path / "classifier")}
        session = opened(node.model_copy(update={"models": models}), "classifier", Lora(r=2))
        assert facts_by_name(session)["classifier.weight"].initialisation.kind == "normal"
        assert not torch.equal(session.trainables["classifier.weight"], stored.classifier.weight)

    def test_the_prefix_is_dropped_out_in_training_alone(self, node: AgentSettings) -> None:
        session = opened(node, "bert", Prefix(num_virtual_tokens=8, dropout=0.5, init_std=1.0))
        model: Any = session.model
        encoder = model.prompt_encoder["default"]
        tokens = torch.arange(8)
        session.training(True)
        assert (encoder(tokens) == 0).float().mean() > 0.3
        session.training(False)
        assert torch.equal(encoder(tokens), session.trainables["prompt_embeddings"])
