"""Troubles with models and adapters that no test of the code says already: each is right, or refused by name.

The row of the log is in each test's name.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from federated.contract import FederationRefused
from federated.trainable import Lora, Prefix
from tests.support import zoo
from tests.support.training import first_instruction, train_some_steps, work_of
from tests.troubles.adapting import Zoo
from worker_agent.training.job_errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
ALONE = [name for name, kind in zoo.KINDS.items() if not kind.of]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    torch.set_num_threads(1)
    return Zoo(tmp_path_factory.mktemp("zoo"))


def test_m04_of_experts_and_a_shared_one_the_description_names_what_is_adapted(models: Zoo) -> None:
    session = models.opened("qwen2-moe", Lora(r=2, target_modules=("gate_proj", "up_proj", "down_proj")))
    adapted = {name.split(".mlp.")[1] for name in session.facts.adapted_modules}
    assert adapted == {f"shared_expert.{name}_proj" for name in ("gate", "up", "down")}


@pytest.mark.parametrize("model_type", ["bert", "mine"])
def test_m11_code_in_a_models_folder_is_not_run(models: Zoo, tmp_path: Path, model_type: str) -> None:
    folder, marker = zoo.folder("bert", tmp_path), tmp_path / "ran"
    (folder / "mine.py").write_text(f"open({str(marker)!r}, 'w').close()\n", encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = {"AutoConfig": "mine.Mine", "AutoModelForSequenceClassification": "mine.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type, "auto_map": names}))
    error = Zoo(tmp_path).refusal("bert", Lora(r=2))
    assert not marker.exists()
    assert (error.code if error else "") == ("" if model_type == "bert" else "model_missing")


def test_m12_files_that_do_not_name_their_format_are_read(models: Zoo, tmp_path: Path) -> None:
    folder = zoo.folder("llama", tmp_path)
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    own = Zoo(tmp_path)
    assert own.refusal("llama", Lora(r=2)) is None
    assert own.opened("llama", Lora(r=2)).evaluate() == models.opened("llama", Lora(r=2)).evaluate()


@pytest.mark.parametrize("model", ALONE)
def test_m15_a_text_longer_than_the_model_reads_is_cut(models: Zoo, model: str) -> None:
    assert models.refusal(model, Lora(r=2, target_modules=(zoo.KINDS[model].embedding,))) is None


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_m19_a_tokenizer_that_pads_on_the_left_changes_nothing(models: Zoo, tmp_path: Path, model: str) -> None:
    folder = zoo.folder(model, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(folder)
    own = Zoo(tmp_path)
    assert own.opened(model, Lora(r=2)).evaluate() == models.opened(model, Lora(r=2)).evaluate()


@pytest.mark.parametrize(
    "model", ["qwen3", "gemma2", "gemma3", "llama", "mistral", "opt", "bloom", "phi3", "gpt2", "bert"]
)
def test_m22a_a_prefix_has_the_width_of_the_models_own_heads(models: Zoo, tmp_path: Path, model: str) -> None:
    session = models.opened(model, Prefix(num_virtual_tokens=3))
    train_some_steps(session, steps=1)
    models.assert_reopens(session, model, Prefix(num_virtual_tokens=3), tmp_path)


@pytest.mark.parametrize("model", ["t5", "bart", "roberta", "electra", "deberta-v2", "modernbert", "distilbert"])
def test_m24_a_head_of_any_name_is_trained_saved_and_opened(models: Zoo, tmp_path: Path, model: str) -> None:
    trainable = Lora(r=2, target_modules=(zoo.KINDS[model].embedding,))
    session = models.opened(model, trainable)
    heads = [name for name in session.trainables if ".lora_" not in name]
    before = {name: session.trainables[name].detach().clone() for name in heads}
    train_some_steps(session, steps=2)
    assert heads
    assert any(not torch.equal(session.trainables[name], before[name]) for name in heads)
    models.assert_reopens(session, model, trainable, tmp_path)


@pytest.mark.parametrize("model", ["bert", "gpt2", "llama", "gemma3", "opt", "qwen3"])
def test_m26_recomputed_activations_change_no_gradient(models: Zoo, model: str) -> None:
    gradients = []
    for setting in (False, True):
        session = models.opened(model, Lora(r=2), gradient_checkpointing=setting)
        session.training(True)
        torch.manual_seed(0)
        session.loss(next(session.batches(range(4), 4))).backward()  # type: ignore[no-untyped-call]
        gradients.append({name: value.grad for name, value in session.trainables.items()})
    assert any(value is not None and bool(value.any()) for value in gradients[1].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("model", ["bert", "gpt2", "llama", "gemma3", "deberta-v2"])
def test_m27_narrow_numbers_train_as_wide_ones(models: Zoo, model: str, dtype: str) -> None:
    losses = []
    for one in ("float32", dtype):
        session = models.opened(model, Lora(r=2), dtype=one)
        torch.manual_seed(0)
        losses.append(torch.tensor(train_some_steps(session, steps=3)))
        assert all(value.dtype is torch.float32 and bool(value.isfinite().all()) for value in session.read().values())
    torch.testing.assert_close(losses[1], losses[0], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("model", ["bart", "t5"])
def test_m28_a_method_that_needs_one_row_of_layers_refuses_a_model_with_two(models: Zoo, model: str) -> None:
    session = models.opened(model, Lora(r=2))
    work = work_of(model, Lora(r=2)).model_copy(update={"algorithm": "fibecfed"})
    with pytest.raises(FederationRefused, match=r"layers of this model cannot be told apart.*decoder.*0"):
        first_instruction(work, session.facts)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
@pytest.mark.parametrize("model", ["gpt2", "bert", "deberta-v2"])
def test_l03_trained_biases_are_saved(models: Zoo, tmp_path: Path, model: str, bias: Any) -> None:
    trainable = Lora(r=2, bias=bias)
    session = models.opened(model, trainable)
    biases = {name: value.detach().clone() for name, value in session.trainables.items() if name.endswith(".bias")}
    train_some_steps(session, steps=2)
    assert any(not torch.equal(session.trainables[name], value) for name, value in biases.items())
    models.assert_reopens(session, model, trainable, tmp_path)


def test_l09a_layers_are_those_that_are_named_in_a_model_of_experts_too(models: Zoo) -> None:
    for model in ("qwen3-moe", "mixtral", "bert"):
        name = "query" if model == "bert" else "q_proj"
        session = models.opened(model, Lora(r=2, target_modules=(name,), layers_to_transform=(1,)))
        assert len(session.facts.adapted_modules) == 1
        assert ".1." in session.facts.adapted_modules[0]
        with pytest.raises(ModelError, match="target_modules"):
            models.opened(model, Lora(r=2, target_modules=(name,), layers_to_transform=(99,)))
    with pytest.raises(ValidationError, match="layers_to_transform"):
        Lora(layers_to_transform=(-1,))


@pytest.mark.parametrize(
    ("field", "value"),
    [("use_dora", True), ("init_lora_weights", "pissa"), ("target_parameters", ["mlp.experts.gate_up_proj"])],
)
def test_l10_what_is_not_offered_is_refused_by_its_field(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        Lora.model_validate({"kind": "lora", field: value})
    assert [error["loc"] for error in refused.value.errors()] == [(field,)]


@pytest.mark.parametrize("fields", [{"use_rslora": True}, {"lora_dropout": 0.3}, {}])
def test_l11_a_rank_above_the_width_trains_and_opens(models: Zoo, tmp_path: Path, fields: dict[str, Any]) -> None:
    trainable = Lora(r=128, lora_alpha=16, **fields)
    session = models.opened("llama", trainable, "causal_lm")
    losses = torch.tensor(train_some_steps(session))
    assert bool(losses.isfinite().all())
    models.assert_reopens(session, "llama", trainable, tmp_path)


def test_a05_a_language_models_adapter_is_of_factors_alone(models: Zoo, tmp_path: Path) -> None:
    session = models.opened("llama", Lora(r=2), "causal_lm")
    models.assert_reopens(session, "llama", Lora(r=2), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["modules_to_save"], config["bias"]) == (None, "none")
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert all(".lora_" in name for name in load_file(tmp_path / "adapter_model.safetensors"))


def test_a04_an_adapter_says_the_digest_of_its_base(models: Zoo, tmp_path: Path) -> None:
    session = models.opened("llama", Lora(r=2), "causal_lm")
    models.assert_reopens(session, "llama", Lora(r=2), tmp_path)
    metadata = (tmp_path / "adapter_model.safetensors").read_bytes()[:4096] + (tmp_path / "README.md").read_bytes()
    assert session.facts.weights_digest.removeprefix("sha256:").encode() in metadata
