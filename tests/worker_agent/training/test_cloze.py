"""Cloze classification with the model's own masked-language head."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional
from transformers import AutoModelForMaskedLM, AutoTokenizer

from federated.contract import Adapter, AnyTrainable
from federated.export.adapter_files import write_adapter
from federated.protocol import Cloze, TaskDefinition
from federated.templates import parse
from federated.trainable import Lora, Prefix
from tests.support import masked_language, tiny_models
from tests.support.training import make_node, train_some_steps, work_of
from worker_agent.settings import AgentSettings, DatasetSettings
from worker_agent.training.cloze import with_gaps
from worker_agent.training.job_errors import DataError, JobRefused, ModelError
from worker_agent.training.session import Session, open_session

COLORS = ("red", "green", "blue")
WORDS = ("cat", "dog", "bird")
PREFIX = Prefix(num_virtual_tokens=3)
MODELS = pytest.mark.parametrize("model", ["masked-bert", "masked-roberta"])


def task(template: str = "{text} . a {mask} .", words: tuple[str, ...] = WORDS, **changes: Any) -> TaskDefinition:
    cloze = Cloze(template=template, words=words)
    return TaskDefinition(task="sequence_classification", labels=COLORS, cloze=cloze, **changes)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> AgentSettings:
    folder = tmp_path_factory.mktemp("node")
    plain = make_node(folder)
    models = {
        "masked-bert": str(masked_language.masked_bert_folder(folder / "masked-bert")),
        "masked-roberta": str(masked_language.masked_roberta_folder(folder / "masked-roberta")),
    }
    return plain.model_copy(update={"models": {**plain.models, **models}})


def opened(
    node: AgentSettings, model: str, trainable: AnyTrainable = PREFIX, definition: TaskDefinition | None = None
) -> Session:
    return open_session(work_of(model, trainable, definition or task()), "colors", node, 3, {})


class TestSession:
    @MODELS
    def test_the_loss_is_over_the_whole_vocabulary_at_the_gap(self, node: AgentSettings, model: str) -> None:
        session = opened(node, model)
        tokenizer = AutoTokenizer.from_pretrained(node.models[model])
        batch = next(session.batches([0, 1, 2, 3], 4))
        ids = batch.inputs["input_ids"]
        rows, gaps = (ids == tokenizer.mask_token_id).nonzero().unbind(dim=1)
        assert rows.tolist() == [0, 1, 2, 3]
        with torch.no_grad():
            logits = session.model(**batch.inputs).logits[rows, gaps]
        words = torch.tensor([tokenizer.convert_tokens_to_ids(word) for word in WORDS])
        expected = functional.cross_entropy(logits, words[batch.targets], reduction="none")
        torch.testing.assert_close(session.loss(batch, "none").detach(), expected)
        assert logits.shape[1] == len(tokenizer)

    @MODELS
    def test_a_prediction_is_among_the_label_words(self, node: AgentSettings, model: str) -> None:
        session = opened(node, model)
        train_some_steps(session, steps=10)
        tokenizer = AutoTokenizer.from_pretrained(node.models[model])
        words = [tokenizer.convert_tokens_to_ids(word) for word in WORDS]
        right = 0
        for index in range(len(session.data.held_out)):
            batch = session.data.held_out.batch([index], session.device)
            (gap,) = (batch.inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0].tolist()
            with torch.no_grad():
                logits = session.model(**batch.inputs).logits[0, gap]
            right += int(logits[words].argmax() == batch.targets[0])
        told = session.evaluate()
        assert told["accuracy"] == right / told["examples"]

    @MODELS
    def test_prompts_alone_are_trained_and_learn(self, node: AgentSettings, model: str) -> None:
        session = opened(node, model, Prefix(num_virtual_tokens=6, dropout=0.0))
        assert [tensor.name for tensor in session.facts.tensors] == ["prompt_embeddings"]
        assert session.facts.seeded == ()
        told = train_some_steps(session, steps=100)
        assert sum(told[-5:]) < 0.8 * sum(told[:5])

    @MODELS
    @pytest.mark.parametrize("trainable", [PREFIX, Lora(r=2, target_modules=("query",))])
    def test_peft_opens_the_adapter_over_the_masked_language_model(
        self, node: AgentSettings, tmp_path: Path, model: str, trainable: Any
    ) -> None:
        session = opened(node, model, trainable)
        train_some_steps(session)
        write_adapter(tmp_path, Adapter("peft", session.read()), trainable, session.facts, node.models[model], {})
        base = AutoModelForMaskedLM.from_pretrained(node.models[model])
        again = peft.PeftModel.from_pretrained(base, tmp_path).eval()
        batch = next(session.batches([0, 1, 2], 3))
        with torch.no_grad():
            assert torch.equal(again(**batch.inputs).logits, session.model(**batch.inputs).logits)

    def test_files_without_a_masked_language_head_are_refused(self, node: AgentSettings, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="no mask token"):
            opened(node, "bert")
        folder = tiny_models.bert_folder(tmp_path)
        AutoTokenizer.from_pretrained(node.models["masked-bert"]).save_pretrained(folder)
        settings = node.model_copy(update={"models": {"headless": str(folder)}})
        with pytest.raises(ModelError, match=r"no language head: 'cls\.predictions"):
            opened(settings, "headless")

    @pytest.mark.parametrize(("word", "problem"), [("whale", "1 tokens"), ("red dog", "'red dog' is 2 tokens")])
    def test_a_label_word_that_is_not_one_known_token_is_refused(
        self, node: AgentSettings, word: str, problem: str
    ) -> None:
        with pytest.raises(JobRefused, match=problem) as caught:
            opened(node, "masked-bert", definition=task(words=(word, "cat", "bird")))
        assert caught.value.code == "cloze_impossible"

    def test_a_column_of_the_template_that_the_data_lacks_is_named(self, node: AgentSettings) -> None:
        with pytest.raises(DataError, match="headline"):
            opened(node, "masked-bert", definition=task("{headline} {mask}"))

    def test_a_mask_token_in_the_text_is_no_gap(self, node: AgentSettings, tmp_path: Path) -> None:
        rows = [{"text": f"[MASK] {row['text']}", "label": row["label"]} for row in tiny_models.color_rows(10)]
        path = tiny_models.write_rows(tmp_path / "masks.jsonl", rows)
        settings = node.model_copy(update={"datasets": {"colors": DatasetSettings(path=path)}})
        batch = next(opened(settings, "masked-bert").batches([0, 1], 2))
        tokenizer = AutoTokenizer.from_pretrained(node.models["masked-bert"])
        assert (batch.inputs["input_ids"] == tokenizer.mask_token_id).sum(dim=1).tolist() == [1, 1]


class TestCutting:
    def test_the_text_is_cut_and_the_gap_stays(self, node: AgentSettings) -> None:
        tokenizer: Any = AutoTokenizer.from_pretrained(node.models["masked-bert"])
        row = {"text": "red green blue one two three", "other": "cat dog"}
        (ids,) = with_gaps(tokenizer, parse("{text} {other} is {mask} ."), [row], 10)
        assert tokenizer.convert_ids_to_tokens(ids) == (
            ["[CLS]", "red", "green", "blue", "cat", "dog", "is", "[MASK]", ".", "[SEP]"]
        )

    def test_a_template_without_room_is_refused(self, node: AgentSettings) -> None:
        tokenizer: Any = AutoTokenizer.from_pretrained(node.models["masked-bert"])
        with pytest.raises(DataError, match="alone has 7 tokens, the limit is 6"):
            with_gaps(tokenizer, parse("{text} is a cat {mask} ."), [{"text": "red"}], 6)


class TestDefinition:
    @pytest.mark.parametrize(
        ("template", "problem"),
        [
            ("no gap", "it has it 0 times"),
            ("{mask} {mask}", "it has it 2 times"),
            ("{mask} {", "'{'"),
            ("{{mask}}", "0 times"),
        ],
    )
    def test_a_template_has_one_gap(self, template: str, problem: str) -> None:
        with pytest.raises(ValidationError, match=problem):
            Cloze(template=template, words=("a", "b"))

    def test_words_differ_and_there_is_one_for_each_label(self) -> None:
        with pytest.raises(ValidationError, match="must differ"):
            Cloze(words=("a", "a"))
        with pytest.raises(ValidationError, match="2 words for 3 labels"):
            task(words=("cat", "dog"))

    def test_a_causal_model_has_no_gap(self) -> None:
        with pytest.raises(ValidationError, match="2 words for 0 labels"):
            TaskDefinition(task="causal_lm", cloze=Cloze(words=("a", "b")))
