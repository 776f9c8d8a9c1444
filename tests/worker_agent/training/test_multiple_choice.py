"""Classification with a decoder that reads a text with each label word in its gap."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaModel

from federated.contract import Adapter, AnyTrainable
from federated.export.adapter_files import write_adapter
from federated.protocol import Cloze, TaskDefinition
from federated.trainable import Lora, Prefix
from tests.support import tiny_models
from tests.support.training import logits_of, make_node, train_some_steps, work_of
from worker_agent.settings import AgentSettings
from worker_agent.training.job_errors import DataError, ModelError
from worker_agent.training.multiple_choice import with_words
from worker_agent.training.session import Session, open_session

COLORS = ("red", "green", "blue")
PREFIX = Prefix(num_virtual_tokens=3)
LORA = Lora(r=4, lora_alpha=16, target_modules="all-linear")
TEMPLATE = "{text} . a {mask} ."
# Words of one to three tokens, and how many of their first tokens are the same.
WORDS = pytest.mark.parametrize(
    ("words", "shared"),
    [(("cat", "dog", "bird"), 0), (("cat", "dog bird", "dog cat a"), 0), (("dog cat", "dog bird", "dog a bird"), 1)],
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> AgentSettings:
    return make_node(tmp_path_factory.mktemp("node"))


def opened(
    node: AgentSettings,
    words: tuple[str, ...] = ("cat", "dog", "bird"),
    trainable: AnyTrainable = PREFIX,
    template: str = TEMPLATE,
    model: str = "llama",
    **task: Any,
) -> Session:
    cloze = Cloze(template=template, words=words)
    definition = TaskDefinition(task="sequence_classification", labels=COLORS, cloze=cloze, **task)
    return open_session(work_of(model, trainable, definition), "colors", node, 3, {})


def log_likelihoods(session: Session, text: str, word: str, shared: int) -> Tensor:
    """Of each token that the words do not share, one text at a time and nothing filled up."""
    before = ["[CLS]", *text.split(), ".", "a"]
    tokenizer = tiny_models._tokenizer()
    ids = torch.tensor([tokenizer.convert_tokens_to_ids([*before, *word.split(), "."])])
    with torch.no_grad():
        told = session.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
    first = len(before) + shared
    return torch.stack([told[place - 1, ids[0, place]] for place in range(first, ids.shape[1])])


def rows_of(session: Session, node: AgentSettings, words: Sequence[str]) -> dict[bool, list[tuple[str, int]]]:
    """Text and class of the rows that are trained on (True) and held out (False), in their order."""
    tokenizer: Any = AutoTokenizer.from_pretrained(node.models["llama"])
    found: dict[bool, list[tuple[str, int]]] = {}
    for trained, data in ((True, session.data.train), (False, session.data.held_out)):
        found[trained] = []
        for index in range(len(data)):
            batch = data.batch([index], session.device)
            tokens = tokenizer.convert_ids_to_tokens(batch.inputs["input_ids"][0])
            text = " ".join(tokens[1 : tokens.index(".")])
            found[trained].append((text, next(n for n, color in enumerate(COLORS) if color in text)))
            assert tokens[tokens.index(".") :] == [".", "a", *words[found[trained][-1][1]].split(), "."]
    return found


@WORDS
class TestLikelihood:
    def test_the_loss_is_of_the_right_words_tokens_from_where_the_words_differ(
        self, node: AgentSettings, words: tuple[str, ...], shared: int
    ) -> None:
        session = opened(node, words)
        rows = rows_of(session, node, words)[True]
        by_hand = [-log_likelihoods(session, text, words[label], shared).mean() for text, label in rows]
        batch = next(session.batches(range(session.examples), session.examples))
        torch.testing.assert_close(session.loss(batch, "none").detach(), torch.stack(by_hand))
        assert batch.examples == session.examples == len(rows)

    def test_a_prediction_is_the_word_with_the_likeliest_tokens(
        self, node: AgentSettings, words: tuple[str, ...], shared: int
    ) -> None:
        session = opened(node, words, metrics=("accuracy", "matthews", "f1"))
        train_some_steps(session, steps=10)
        right, losses = 0, []
        for text, label in rows_of(session, node, words)[False]:
            told = [log_likelihoods(session, text, word, shared) for word in words]
            right += int(torch.stack([each.sum() for each in told]).argmax() == label)
            losses.append(float(-told[label].mean()))
        metrics = session.evaluate()
        assert metrics["accuracy"] == right / len(losses)
        assert metrics["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        assert {"matthews", "f1"} < metrics.keys()

    @pytest.mark.parametrize("trainable", [LORA, Prefix(num_virtual_tokens=6, dropout=0.0)])
    def test_it_learns(
        self, node: AgentSettings, words: tuple[str, ...], shared: int, trainable: AnyTrainable
    ) -> None:
        session = opened(node, words, trainable)
        trained = [tensor.name for tensor in session.facts.tensors]
        assert all("lora_" in name or name == "prompt_embeddings" for name in trained)
        assert session.facts.seeded == ()
        told = train_some_steps(session, steps=80)
        assert sum(told[-5:]) < 0.75 * sum(told[:5])
        if trainable is LORA:
            assert session.evaluate()["accuracy"] >= 0.75


class TestAdapter:
    @pytest.mark.parametrize("model", ["llama", "tied-llama"])
    @pytest.mark.parametrize("trainable", [PREFIX, LORA])
    def test_peft_opens_it_over_the_causal_model(
        self, node: AgentSettings, tmp_path: Path, model: str, trainable: Any
    ) -> None:
        session = opened(node, trainable=trainable, model=model)
        assert session.facts.task_type == "CAUSAL_LM"
        train_some_steps(session)
        write_adapter(tmp_path, Adapter("peft", session.read()), trainable, session.facts, node.models[model], {})
        base = AutoModelForCausalLM.from_pretrained(node.models[model])
        again = peft.PeftModel.from_pretrained(base, tmp_path).eval()
        inputs, expected = logits_of(session)
        with torch.no_grad():
            assert torch.equal(again(**inputs).logits, expected)

    def test_without_held_out_rows_nothing_is_evaluated(self, node: AgentSettings) -> None:
        data = {name: one.model_copy(update={"held_out": 0.0}) for name, one in node.datasets.items()}
        assert opened(node.model_copy(update={"datasets": data})).evaluate() == {"examples": 0.0}

    def test_the_labels_of_the_rows_are_told(self, node: AgentSettings) -> None:
        session = opened(node)
        assert set(session.data.train.targets.tolist()) == {0, 1, 2}


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "template", "problem"),
        [
            (("cat:", "cat :", "bird"), TEMPLATE, "'cat:' and 'cat :' are the same tokens"),
            (("bird", "dog", "dog cat"), "{text} is {mask}", "'dog' are the first of 'dog cat'"),
            (("bird", "dog cat", "dog"), "{text} is {mask}", "'dog' are the first of 'dog cat'"),
            (("bird", "whale", "dog"), TEMPLATE, "'whale' is unknown"),
        ],
    )
    def test_words_that_cannot_be_told_apart_are_refused_by_name(
        self, node: AgentSettings, words: tuple[str, ...], template: str, problem: str
    ) -> None:
        with pytest.raises(ModelError, match=problem) as caught:
            opened(node, words, template=template)
        assert caught.value.code == "cloze_impossible"

    def test_what_follows_the_gap_tells_a_word_from_a_longer_one(self, node: AgentSettings) -> None:
        assert opened(node, ("bird", "dog", "dog cat")).examples > 0

    def test_files_without_a_language_head_are_refused(self, node: AgentSettings, tmp_path: Path) -> None:
        tiny_models.llama_folder(tmp_path)
        LlamaModel(LlamaConfig(**tiny_models.SMALL)).save_pretrained(tmp_path)
        settings = node.model_copy(update={"models": {"headless": str(tmp_path)}})
        with pytest.raises(ModelError, match=r"no language head: 'lm_head.weight' is not in its files"):
            opened(settings, model="headless")

    def test_a_column_of_the_template_that_the_data_lacks_is_named(self, node: AgentSettings) -> None:
        with pytest.raises(DataError, match="headline"):
            opened(node, template="{headline} {mask}")


class TestTexts:
    def test_a_long_text_is_cut_for_all_words_alike(self, node: AgentSettings) -> None:
        tokenizer: Any = AutoTokenizer.from_pretrained(node.models["llama"])
        cloze = Cloze(template="{text} {other} is {mask} .", words=("cat", "dog bird"))
        row = {"text": "red green blue one two three", "other": "cat dog"}
        made, starts = with_words(tokenizer, cloze, [row], 10)
        assert [tokenizer.convert_ids_to_tokens(ids) for ids in made] == [
            ["[CLS]", "red", "green", "blue", "cat", "dog", "is", "cat", "."],
            ["[CLS]", "red", "green", "blue", "cat", "dog", "is", "dog", "bird", "."],
        ]
        assert starts == [7]

    def test_a_template_without_room_is_refused(self, node: AgentSettings) -> None:
        tokenizer: Any = AutoTokenizer.from_pretrained(node.models["llama"])
        cloze = Cloze(template="{text} is a cat {mask} .", words=("cat", "dog bird"))
        with pytest.raises(DataError, match="alone has 7 tokens, the limit is 6"):
            with_words(tokenizer, cloze, [{"text": "red"}], 6)

    def test_a_gap_that_nothing_stands_before_is_refused(self, node: AgentSettings) -> None:
        tokenizer: Any = AutoTokenizer.from_pretrained(node.models["llama"])
        cloze = Cloze(template="{mask} : {text}", words=("cat", "dog"))
        assert with_words(tokenizer, cloze, [{"text": "red"}], 9)[1] == [1]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
        with pytest.raises(ModelError, match="has no token before it"):
            with_words(tokenizer, cloze, [{"text": "red"}], 9)
