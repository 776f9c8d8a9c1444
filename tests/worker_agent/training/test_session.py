"""The session: batches, losses, metrics, and a model that is fresh for every job."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from federated.maths.initialization import start
from federated.protocol import TaskDefinition
from federated.session import TrainingSession
from federated.trainable import Full, Lora, Prefix
from tests.support.tiny_models import color_rows, instruction_rows, write_rows
from tests.support.training import COLORS, FEDERATION_SEED, REPEAT, logits_of, make_node, train_some_steps, work_of
from worker_agent.settings import AgentSettings, DatasetSettings
from worker_agent.training.job_errors import DataError, ModelError
from worker_agent.training.session import Session, SessionFactory, open_session
from worker_agent.training.tokens import TokenBatch


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> AgentSettings:
    return make_node(tmp_path_factory.mktemp("node"))


def classifier(node: AgentSettings, **changes: Any) -> Session:
    return open_session(work_of("bert", **changes), "colors", node, 3, {})


def language_model(node: AgentSettings) -> Session:
    return open_session(work_of("llama", task=REPEAT), "instructions", node, 3, {})


def batch_of(session: Session, *indices: int) -> TokenBatch:
    return next(session.batches(indices, len(indices)))


class TestLoss:
    def test_the_mean_the_sum_and_the_losses_of_single_examples_agree(self, node: AgentSettings) -> None:
        for session in (classifier(node), language_model(node)):
            batch = batch_of(session, 0, 1, 2, 3)
            each = session.loss(batch, "none")
            assert each.shape == (4,)
            assert torch.allclose(session.loss(batch), each.mean())
            assert torch.allclose(session.loss(batch, "sum"), each.sum())
            alone = torch.stack([session.loss(batch_of(session, index)) for index in range(4)])
            assert torch.allclose(each, alone, atol=1e-5)

    def test_a_classifiers_loss_is_that_of_transformers(self, node: AgentSettings) -> None:
        session = classifier(node)
        batch = batch_of(session, 0, 1, 2)
        expected = session.model(**batch.inputs, labels=batch.targets).loss
        assert torch.allclose(session.loss(batch), expected)

    def test_a_causal_examples_loss_is_the_mean_over_its_response_tokens(self, node: AgentSettings) -> None:
        session = language_model(node)
        batch = batch_of(session, 4)
        logits = session.model(**batch.inputs).logits[0, :-1]
        targets = batch.targets[0, 1:]
        counted = targets != -100
        assert int(counted.sum()) == 3
        assert torch.allclose(session.loss(batch), functional.cross_entropy(logits[counted], targets[counted]))

    def test_pieces_of_a_batch_hold_the_same_examples(self, node: AgentSettings) -> None:
        session = classifier(node)
        batch = batch_of(session, 5, 3, 8, 1, 2)
        pieces = list(session.split(batch, 2))
        assert [list(piece.indices) for piece in pieces] == [[5, 3], [8, 1], [2]]
        each = torch.cat([session.loss(piece, "none") for piece in pieces])
        assert torch.allclose(each, session.loss(batch, "none"), atol=1e-6)

    def test_training_lowers_the_loss(self, node: AgentSettings) -> None:
        for session in (classifier(node), language_model(node)):
            told = train_some_steps(session, steps=25)
            assert sum(told[-5:]) < 0.8 * sum(told[:5])

    def test_bfloat16_is_used_for_products_and_kept_out_of_the_trained_tensors(self, node: AgentSettings) -> None:
        session = open_session(work_of("bert"), "colors", node.model_copy(update={"dtype": "bfloat16"}), 3, {})
        full = classifier(node)
        assert {value.dtype for value in session.trainables.values()} == {torch.float32}
        assert session.facts == full.facts
        batch = batch_of(session, 0, 1, 2)
        assert session.loss(batch).dtype is torch.float32
        assert torch.allclose(session.loss(batch), full.loss(batch), atol=0.05)
        assert not torch.equal(session.loss(batch), full.loss(batch))

    @pytest.mark.parametrize("trainable", [Lora(r=2), Prefix(num_virtual_tokens=2)])
    def test_checkpointed_activations_change_no_gradient(self, node: AgentSettings, trainable: Any) -> None:
        gradients = []
        for setting in (False, True):
            settings = node.model_copy(update={"gradient_checkpointing": setting})
            session = open_session(work_of("llama", trainable), "colors", settings, 3, {})
            session.training(True)
            torch.manual_seed(0)
            session.loss(batch_of(session, 0, 1, 2)).backward()  # type: ignore[no-untyped-call]
            gradients.append({name: value.grad for name, value in session.trainables.items()})
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient)


class TestEvaluation:
    def test_metrics_are_those_of_the_held_out_examples_one_by_one(self, node: AgentSettings) -> None:
        session = classifier(node)
        train_some_steps(session, steps=20)
        held_out = session.data.held_out
        session.training(False)
        batches = [held_out.batch([index], session.device) for index in range(len(held_out))]
        with torch.no_grad():
            losses = [float(session.loss(batch)) for batch in batches]
            right = [bool(session.model(**batch.inputs).logits.argmax() == batch.targets) for batch in batches]
        told = session.evaluate()
        assert set(told) == {"loss", "accuracy", "matthews", "f1", "examples"}
        assert told["examples"] == 4
        assert told["loss"] == pytest.approx(sum(losses) / 4, abs=1e-5)
        assert told["accuracy"] == sum(right) / 4

    def test_a_causal_models_accuracy_is_the_share_of_response_tokens(self, node: AgentSettings) -> None:
        session = language_model(node)
        train_some_steps(session, steps=10)
        right: list[torch.Tensor] = []
        for index in range(len(session.data.held_out)):
            batch = session.data.held_out.batch([index], session.device)
            with torch.no_grad():
                predicted = session.model(**batch.inputs).logits[0, :-1].argmax(-1)
            counted = batch.targets[0, 1:] != -100
            right.append((predicted == batch.targets[0, 1:])[counted])
        told = session.evaluate()
        assert set(told) == {"loss", "accuracy", "examples"}
        assert told["accuracy"] == pytest.approx(torch.cat(right).float().mean().item())
        assert 0 < told["accuracy"] < 1

    def test_evaluation_trains_nothing_and_leaves_the_mode_as_it_was(self, node: AgentSettings) -> None:
        session = classifier(node)
        session.training(True)
        before = session.read()
        assert session.evaluate() == session.evaluate()
        assert session.model.training
        assert all(torch.equal(value, before[name]) for name, value in session.read().items())
        assert all(value.grad is None for value in session.trainables.values())

    def test_without_held_out_rows_only_their_number_is_told(self, node: AgentSettings, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "rows.jsonl", color_rows(5))
        settings = node.model_copy(update={"datasets": {"mine": DatasetSettings(path=path, held_out=0)}})
        session = open_session(work_of("bert"), "mine", settings, 3, {})
        assert session.examples == 5
        assert session.evaluate() == {"examples": 0.0}


class TestTensors:
    def test_what_is_loaded_is_read_back(self, node: AgentSettings) -> None:
        for trainable in (Lora(r=2, bias="all"), Prefix(num_virtual_tokens=2), Full(names=("bert.pooler.*",))):
            session = classifier(node, trainable=trainable)
            given = {name: torch.randn(value.shape) for name, value in session.trainables.items()}
            session.load(given)
            found = session.read()
            assert list(found) == list(given)
            assert all(torch.allclose(found[name], given[name], atol=1e-6) for name in given)

    def test_a_difference_is_added_to_the_base_models_value(self, node: AgentSettings) -> None:
        session = classifier(node, trainable=Full(names=("bert.pooler.dense.bias",)))
        parameter = session.trainables["bert.pooler.dense.bias"]
        base = parameter.detach().clone()
        session.load({"bert.pooler.dense.bias": torch.ones(16)})
        assert torch.equal(parameter, base + 1)

    def test_an_unknown_name_and_a_wrong_shape_are_named(self, node: AgentSettings) -> None:
        session = classifier(node)
        with pytest.raises(KeyError, match="nowhere"):
            session.load({"nowhere": torch.zeros(1)})
        with pytest.raises(ValueError, match=r"'classifier.bias' has shape \[4\], expected \[3\]"):
            session.load({"classifier.bias": torch.zeros(4)})
        with pytest.raises(KeyError, match="nowhere"):
            session.train_all_except(["nowhere"])

    def test_a_seeded_tensor_can_be_loaded_too(self, node: AgentSettings) -> None:
        session = open_session(work_of("bert-without-pooler"), "colors", node, 3, {})
        before = logits_of(session)[1]
        session.load({"bert.pooler.dense.weight": torch.ones(16, 16)})
        assert not torch.equal(logits_of(session)[1], before)

    def test_frozen_tensors_keep_their_bits_and_the_others_train(self, node: AgentSettings) -> None:
        session = classifier(node)
        frozen = [name for name in session.trainables if "lora_A" in name]
        session.train_all_except(frozen)
        before = session.read()
        train_some_steps(session)
        changed = {name for name, value in session.read().items() if not torch.equal(value, before[name])}
        assert changed == set(session.trainables) - set(frozen)

    def test_starts_are_the_federations(self, node: AgentSettings) -> None:
        session = classifier(node)
        for facts in session.facts.tensors:
            assert torch.equal(session.start(facts.name), start(FEDERATION_SEED, facts))

    def test_layers_and_embeddings_are_found_in_every_kind_of_model(self, node: AgentSettings) -> None:
        for model in ("bert", "roberta", "llama"):
            session = open_session(work_of(model), "colors", node, 3, {})
            seen: list[torch.Tensor] = []
            session.embeddings().register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
            session.layers()[0].register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
            with torch.no_grad():
                session.loss(batch_of(session, 0))
            assert len(session.layers()) == 2
            assert torch.equal(seen[0], seen[1])

    def test_a_note_is_kept_once(self, node: AgentSettings) -> None:
        session: TrainingSession = classifier(node)
        session.record_nondeterminism("batch_halved")
        session.record_nondeterminism("batch_halved")
        assert isinstance(session, Session)
        assert session.notes == ("batch_halved",)


class TestWorkbench:
    def test_a_model_is_loaded_once_and_as_new_for_every_job(self, node: AgentSettings) -> None:
        bench = SessionFactory(node)
        for trainable in (Lora(r=2), Full()):
            first = bench.open(work_of("bert", trainable), "colors", 1, {})
            expected = logits_of(first)[1]
            train_some_steps(first)
            first.train_all_except(list(first.trainables)[:1])
            second = bench.open(work_of("bert", trainable), "colors", 2, {})
            assert second.model is first.model
            assert torch.equal(logits_of(second)[1], expected)
            assert all(value.requires_grad for value in second.trainables.values())
            assert second.seed == 2

    def test_another_trainable_takes_another_model(self, node: AgentSettings) -> None:
        bench = SessionFactory(node)
        first = bench.open(work_of("bert", Lora(r=2)), "colors", 1, {})
        assert bench.open(work_of("bert", Lora(r=3)), "colors", 1, {}).model is not first.model

    def test_examples_are_tokenized_once_until_their_file_changes(self, node: AgentSettings, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "rows.jsonl", color_rows(20))
        bench = SessionFactory(node.model_copy(update={"datasets": {"mine": DatasetSettings(path=path)}}))
        first = bench.open(work_of("bert"), "mine", 1, {})
        assert bench.open(work_of("bert"), "mine", 2, {}).data is first.data
        write_rows(path, color_rows(30))
        assert bench.open(work_of("bert"), "mine", 3, {}).examples == 27

    def test_a_prefix_takes_its_place_from_the_text(self, node: AgentSettings, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "rows.jsonl", [{"text": "cat " * 100, "label": "red"}] * 4)
        settings = node.model_copy(update={"datasets": {"mine": DatasetSettings(path=path)}})
        for model, most_tokens in (("bert", 32), ("roberta", 31)):
            session = open_session(work_of(model, Prefix(num_virtual_tokens=10)), "mine", settings, 3, {})
            assert session.data.train.length(0) == most_tokens - 10
            assert session.loss(batch_of(session, 0)).isfinite()

    @pytest.mark.parametrize("virtual_tokens", [25, 32, 40, 4096])
    def test_a_prefix_that_leaves_no_room_is_refused(self, node: AgentSettings, virtual_tokens: int) -> None:
        with pytest.raises(ModelError, match="trainable_invalid"):
            open_session(work_of("bert", Prefix(num_virtual_tokens=virtual_tokens)), "colors", node, 3, {})

    def test_other_weights_are_refused(self, node: AgentSettings) -> None:
        with pytest.raises(ModelError, match="model_mismatch"):
            open_session(work_of("bert", weights_sha256="0" * 64), "colors", node, 3, {})

    def test_instructions_are_no_data_for_a_classifier(self, node: AgentSettings, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "rows.jsonl", instruction_rows(4))
        settings = node.model_copy(update={"datasets": {"mine": DatasetSettings(path=path)}})
        with pytest.raises(DataError, match="has no column 'text'"):
            open_session(work_of("bert"), "mine", settings, 3, {})

    def test_labels_are_those_of_the_federation(self, node: AgentSettings) -> None:
        task = TaskDefinition(task="sequence_classification", labels=("red", "blue"))
        with pytest.raises(DataError, match="label 'green' is not one of: red, blue"):
            open_session(work_of("bert", task=task), "colors", node, 3, {})
        assert COLORS.labels == ("red", "green", "blue")
