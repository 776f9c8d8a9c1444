"""The trial before any round, over the zoo: trainable models pass, and others are refused with a stable code."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from federated.contract import AnyTrainable
from federated.protocol import Cloze, TaskDefinition
from federated.trainable import Full, Lora, Prefix
from tests.support import tiny_models, zoo
from tests.support.training import COLORS, FEW_EXAMPLES, REPEAT, work_of
from tests.support.zoo_architectures import EMBEDDINGS, Task
from worker_agent.settings import AgentSettings, DatasetSettings
from worker_agent.training.factors import factors_of
from worker_agent.training.job_errors import JobRefused
from worker_agent.training.session import Session, SessionFactory
from worker_agent.training.trial import try_model

TASKS: dict[Task, TaskDefinition] = {
    "classifier": COLORS,
    "causal_lm": REPEAT,
    "cloze": COLORS.model_copy(update={"cloze": Cloze(words=("one", "two", "three"))}),
}
REFUSALS = {
    "cloze_impossible", "model_incomplete", "model_missing", "model_not_causal", "model_unfit", "tokenizer_mismatch",
}  # fmt: skip
ALSO_TRAINED = {("bart", "cloze")}
"""It has learnt to fill gaps; merging it is refused where the head was trained apart."""
STACKED = {"mixtral", "qwen3-moe"}
WITHOUT_PREFIX = {
    "albert", "bart", "deberta-v2", "distilbert", "falcon", "modernbert", "mpnet", "mpt", "roformer", "t5",
}  # fmt: skip


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> AgentSettings:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("zoo")
    rows = tiny_models.color_rows(40)
    rows[3]["text"] += " the bird one is a cat two" * 6
    colors = tiny_models.write_rows(root / "colors.jsonl", rows)
    instructions = tiny_models.write_rows(root / "instructions.jsonl", tiny_models.instruction_rows(30))
    return AgentSettings(
        models={name: str(zoo.folder(name, root)) for name in zoo.KINDS},
        datasets={"colors": DatasetSettings(path=colors), "instructions": DatasetSettings(path=instructions)},
        device="cpu",
        policy=FEW_EXAMPLES,
    )


@pytest.fixture
def bench(node: AgentSettings) -> SessionFactory:
    return SessionFactory(node)


def opened(bench: SessionFactory, model: str, trainable: AnyTrainable, task: Task = "classifier") -> Session:
    work = work_of(model, trainable, TASKS[task])
    return bench.open(work, "instructions" if task == "causal_lm" else "colors", 3, {})


def refusal(
    bench: SessionFactory, model: str, trainable: AnyTrainable, task: Task = "classifier"
) -> JobRefused | None:
    try:
        try_model(opened(bench, model, trainable, task), trainable, gradients=True)
    except JobRefused as error:
        return error
    return None


class TestTheZoo:
    @pytest.mark.parametrize("model", zoo.KINDS)
    def test_passes_where_a_task_can_be_trained_and_is_refused_by_name_where_it_cannot(
        self, bench: SessionFactory, model: str
    ) -> None:
        for task in TASKS:
            error = refusal(bench, model, Full(), task)
            if task in zoo.KINDS[model].tasks or (model, task) in ALSO_TRAINED:
                assert error is None, (task, error)
            else:
                assert error is not None, task
                assert error.code in REFUSALS, (task, error)

    @pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:The following (rank|alpha)_pattern keys")
    @pytest.mark.parametrize("model", [name for name, kind in zoo.KINDS.items() if not kind.of])
    def test_adapts_every_linear_map_under_a_name_of_its_own_or_says_why_not(
        self, bench: SessionFactory, model: str
    ) -> None:
        error = refusal(bench, model, Lora(r=2, target_modules="all-linear"))
        if model in STACKED:
            assert error is not None
            assert error.code == "trainable_invalid"
            assert "name the modules to adapt in target_modules" in error.detail
        else:
            assert error is None, error

    @pytest.mark.parametrize("model", [name for name, kind in zoo.KINDS.items() if not kind.of])
    def test_takes_a_prefix_or_says_before_any_round_that_it_cannot(self, bench: SessionFactory, model: str) -> None:
        error = refusal(bench, model, Prefix(num_virtual_tokens=3))
        if model in WITHOUT_PREFIX:
            assert error is not None
            assert error.code == "trainable_invalid"
        else:
            assert error is None, error


class TestWhatAnOwnerMends:
    def test_a_weight_that_is_not_finite(self, node: AgentSettings, tmp_path: Path) -> None:
        folder = zoo.folder("llama", tmp_path)
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.inf
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        error = refusal(
            SessionFactory(node.model_copy(update={"models": {"llama": str(folder)}})), "llama", Lora(r=2)
        )
        assert error is not None
        assert error.code == "model_not_finite"

    def test_an_encoder_that_is_to_write(self, bench: SessionFactory) -> None:
        error = refusal(bench, "roberta", Lora(r=2), "causal_lm")
        assert error is not None
        assert error.code == "model_not_causal"

    def test_a_head_that_is_not_in_the_files(self, bench: SessionFactory) -> None:
        error = refusal(bench, "llama-headless", Lora(r=2), "causal_lm")
        assert error is not None
        assert (error.code, "'lm_head.weight'" in error.detail) == ("model_incomplete", True)

    def test_a_tokenizer_without_words(self, bench: SessionFactory) -> None:
        for model in ("bert-without-tokenizer", "gpt2-without-tokenizer"):
            error = refusal(bench, model, Lora(r=2))
            assert error is not None
            assert (error.code, "no tokenizer" in error.detail) == ("model_missing", True)

    def test_more_tokens_than_embeddings(self, bench: SessionFactory) -> None:
        error = refusal(bench, "llama-too-many-tokens", Lora(r=2))
        assert error is not None
        assert (error.code, f"tokens, the model embeds {EMBEDDINGS};" in error.detail) == ("tokenizer_mismatch", True)

    def test_words_that_the_tokenizer_does_not_know(self, node: AgentSettings, tmp_path: Path) -> None:
        rows = [{"text": "xyzzy plugh", "label": label} for label in ("red", "green") for _ in range(20)]
        other = DatasetSettings(path=tiny_models.write_rows(tmp_path / "other.jsonl", rows))
        bert = tiny_models.bert_folder(tmp_path / "bert")
        own = node.model_copy(update={"datasets": {"colors": other}, "models": {"bert": str(bert)}})
        error = refusal(SessionFactory(own), "bert", Lora(r=2))
        assert error is not None
        assert (error.code, "knows no word" in error.detail) == ("model_missing", True)


def test_a_trial_leaves_no_gradient_and_every_weight_as_it_was(bench: SessionFactory) -> None:
    session = opened(bench, "llama", Lora(r=2), "causal_lm")
    before = session.read()
    try_model(session, Lora(r=2), gradients=True)
    assert all(value.grad is None for value in session.trainables.values())
    assert all(torch.equal(value, before[name]) for name, value in session.read().items())
    assert not session.model.training


def test_an_algorithm_without_gradients_needs_no_memory_for_them(bench: SessionFactory) -> None:
    session = opened(bench, "llama", Full(), "causal_lm")
    backward: list[Any] = []
    for value in session.trainables.values():
        value.register_hook(backward.append)
    try_model(session, Full(), gradients=False)
    assert not backward
    try_model(session, Full(), gradients=True)
    assert backward


def test_factors_of_another_rank_are_no_numbers_until_they_are_set(bench: SessionFactory) -> None:
    session = opened(bench, "llama", Lora(r=2))
    module, factors = next(item for item in factors_of(session.model).items() if item[0].endswith("v_proj"))
    session.resize({module: 3}, {module: 1.0})
    assert bool(factors.a.isnan().all() and factors.b.isnan().all())
    assert not torch.isfinite(session.loss(next(session.batches([0], 1))))
