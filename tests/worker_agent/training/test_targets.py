"""Modules that a trainable names: the same that PEFT finds, named before PEFT runs, or a refusal by field."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from federated.contract import Adapter, AnyTrainable
from federated.export.adapter_files import write_adapter
from federated.trainable import Full, Lora
from tests.support.training import COLORS, REPEAT, logits_of, make_node, train_some_steps, work_of
from worker_agent.settings import AgentSettings
from worker_agent.training.factors import factors_of
from worker_agent.training.job_errors import ModelError
from worker_agent.training.session import Session, open_session

MODELS = {"bert": COLORS, "bert-without-pooler": COLORS, "roberta": COLORS, "llama": REPEAT, "tied-llama": REPEAT}
MODELS |= {"gpt2": REPEAT}
BERT = {"bert": "query", "bert-without-pooler": "query", "roberta": "query"}
QUERY = BERT | {"llama": "q_proj", "tied-llama": "q_proj", "gpt2": "c_attn"}
OUTPUT = dict.fromkeys(BERT, "output.dense") | {"llama": "down_proj", "tied-llama": "down_proj", "gpt2": "mlp.c_proj"}
LAYERS = {
    "bert": "bert.encoder.layer",
    "bert-without-pooler": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
}
LAYERS |= {"llama": "model.layers", "tied-llama": "model.layers", "gpt2": "transformer.h"}

# Ours, and what the same is to PEFT where its language is another: Q and O stand for a model's own modules.
FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "PEFT's choice": ({}, {}),
    "all linear": ({"target_modules": "all-linear", "use_rslora": True}, {}),
    "plain suffixes": ({"target_modules": ["Q", "O"]}, {}),
    "one suffix": ({"target_modules": "Q"}, {"target_modules": ["Q"]}),
    "layers of PEFT's choice": ({"layers_to_transform": [1]}, {}),
    "layers of suffixes": ({"target_modules": ["Q", "O"], "layers_to_transform": [0]}, {}),
    "a whole name beside layers": (
        {"target_modules": ["O", "L.0.P"], "layers_to_transform": [1]},
        {},
    ),
    "part of a component": ({"target_modules": ["*" + "Q"]}, {"target_modules": r".*Q"}),
    "one layer by name": ({"target_modules": "^L.1.P"}, {"target_modules": "L.1.P"}),
    "choice": ({"target_modules": "^L.0.P|L.1.P$"}, {"target_modules": r"L\.[01]\.P"}),
    "ranks and alphas": (
        {"target_modules": ["Q", "O"], "rank_pattern": {"Q": 3, "O": 5}, "alpha_pattern": {"O": 4, "Q": 7}},
        {},
    ),
    "the first that fits": (
        {"target_modules": ["Q", "O"], "rank_pattern": {"^L.0.P": 3, "Q": 5}, "alpha_pattern": {"Q": 4, "L.0.P": 7}},
        {},
    ),
    "ranks by component": (
        {"target_modules": ["Q", "O"], "rank_pattern": {"L.*.P": 3, "O|Q": 6}},
        {"rank_pattern": {r"L\.[^.]*\.P": 3, "O|Q": 6}},
    ),
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> AgentSettings:
    folder = tmp_path_factory.mktemp("node")
    made = make_node(folder)
    size = len(json.loads((folder / "bert" / "tokenizer.json").read_text())["model"]["vocab"])
    config = GPT2Config(vocab_size=size, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.2)
    GPT2LMHeadModel(config).save_pretrained(folder / "gpt2")
    for file in (folder / "bert").glob("tokenizer*"):
        (folder / "gpt2" / file.name).write_bytes(file.read_bytes())
    return made.model_copy(update={"models": made.models | {"gpt2": str(folder / "gpt2")}})


def opened(node: AgentSettings, model: str, trainable: AnyTrainable) -> Session:
    task = MODELS[model]
    return open_session(work_of(model, trainable, task), "colors" if task is COLORS else "instructions", node, 3, {})


def base_of(node: AgentSettings, model: str) -> Any:
    if MODELS[model] is REPEAT:
        return AutoModelForCausalLM.from_pretrained(node.models[model])
    base = AutoModelForSequenceClassification.from_pretrained(node.models[model], num_labels=3)
    base.config.pad_token_id = 0
    return base


def written(value: Any, model: str) -> Any:
    """A field with a model's own names."""
    text = json.dumps(value).replace("L.", LAYERS[model] + ".").replace(r"L\\.", LAYERS[model] + r"\\.")
    whole = "attn.c_attn" if model == "gpt2" else "self_attn.q_proj" if "llama" in model else "attention.self.query"
    text = text.replace('"Q', '"' + QUERY[model]).replace("|Q", "|" + QUERY[model]).replace("*Q", "*" + QUERY[model])
    return json.loads(text.replace('"O', '"' + OUTPUT[model]).replace(".P", "." + whole))


def scales(model: Any) -> dict[str, tuple[int, float, float]]:
    return {name: (one.rank, one.alpha, one.scaling) for name, one in factors_of(model).items()}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("case", FIELDS)
def test_modules_ranks_and_alphas_are_those_that_peft_alone_finds(
    node: AgentSettings, tmp_path: Path, model: str, case: str
) -> None:
    ours, other = (written(fields, model) for fields in FIELDS[case])
    trainable = Lora(r=2, lora_alpha=8, **ours)
    session = opened(node, model, trainable)
    task_type = "CAUSAL_LM" if MODELS[model] is REPEAT else "SEQ_CLS"
    fields = ours | other | {"modules_to_save": list(session.facts.modules_to_save) or None}
    config = peft.LoraConfig(r=2, lora_alpha=8, task_type=task_type, **fields)
    alone = peft.get_peft_model(base_of(node, model), config)
    assert scales(session.model) == scales(alone)
    train_some_steps(session, steps=1)
    tensors = session.read() | {facts.name: session.start(facts.name) for facts in session.facts.seeded}
    write_adapter(tmp_path, Adapter("peft", tensors), trainable, session.facts, "base", {})
    reopened = peft.PeftModel.from_pretrained(base_of(node, model), str(tmp_path)).eval()
    inputs, expected = logits_of(session)
    with torch.no_grad():
        assert torch.equal(reopened(**inputs).logits, expected)
    assert not set("*|^$\\") & set((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("trainable", "told"),
    [
        (Lora(target_modules=("query", "nowhere")), "target_modules: 'nowhere' fits no module of a bert"),
        (Lora(target_modules="^query"), "target_modules: '^query' fits no module of a bert"),
        (Lora(target_modules=("query",), layers_to_transform=(9,)), "target_modules: fits no module of a bert"),
        (Lora(target_modules=("classifier",)), "target_modules: fits no module of a bert"),
        (Lora(rank_pattern={"query": 2, "quary": 3}), "rank_pattern: 'quary' fits no module of a bert"),
        (Lora(alpha_pattern={"*.quary": 3}), "alpha_pattern: '*.quary' fits no module of a bert"),
        (Lora(modules_to_save=("clasifier",)), "modules_to_save: 'clasifier' fits no module of a bert"),
        (Lora(target_modules=("pooler.dense",), modules_to_save=("layer",)), "ModuleList"),
        (Full(names=("*.bias", "pooler.*.wait")), "names: 'pooler.*.wait' fits no weight of a bert"),
    ],
)
def test_a_pattern_that_fits_nothing_is_named_with_its_field(
    node: AgentSettings, trainable: AnyTrainable, told: str
) -> None:
    with pytest.raises(ModelError) as refused:
        opened(node, "bert", trainable)
    assert refused.value.code == "trainable_invalid"
    assert told in refused.value.detail


def test_a_saved_module_is_one_by_its_whole_name_and_its_parts_go_with_it(node: AgentSettings) -> None:
    session = opened(
        node, "bert", Lora(target_modules=("query",), modules_to_save=("pooler", "*.dense", "classifier"))
    )
    assert "bert.pooler" in session.facts.modules_to_save
    assert "bert.pooler.dense" not in session.facts.modules_to_save
    assert {"bert.pooler.dense.weight", "classifier.weight"} <= set(session.trainables)


def test_weights_are_chosen_by_the_module_above(node: AgentSettings) -> None:
    session = opened(node, "bert", Full(names=("pooler", "classifier.*")))
    assert list(session.trainables) == [
        "bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight",
    ]  # fmt: skip
