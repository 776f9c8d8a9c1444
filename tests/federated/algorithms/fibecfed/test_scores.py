"""Scores of examples, layers and rows, on a tiny model."""

import math
from typing import Any

import pytest
import torch

from federated.algorithms.fibecfed.config import FibecFedConfig
from federated.algorithms.fibecfed.fisher import difficulty, factor_maps, fisher_traces
from federated.algorithms.fibecfed.layer_choice import chosen_layers, shares_after_warm_up
from federated.algorithms.fibecfed.layer_scores import dual_noise
from federated.algorithms.fibecfed.layers import layer_tensors, rest_of_head
from federated.algorithms.fibecfed.sparsity import chosen_rows, row_importance, top_rows
from federated.contract import JobDeclined
from federated.maths.per_example import squared_norms, squared_rows
from federated.trainable import Initialization, Lora, ModelFacts, TensorFacts
from tests.support.fused import Once
from tests.support.tiny_session import TinyBatch, TinyFederation, TinySession

LORA = Lora(r=2, lora_alpha=4)


def trained_session(examples: int = 12) -> TinySession:
    """B is no longer zero."""
    session = TinyFederation(trainable=LORA, examples=examples).open(1, 5)
    session.load({name: torch.full((8, 2), 0.1) for name in session.trainables if ".lora_B." in name})
    return session


def with_a_twin(session: TinySession) -> TinySession:
    """The last example is the first once more."""
    tokens, labels = session._data
    session._data = torch.cat([tokens[:-1], tokens[:1]]), torch.cat([labels[:-1], labels[:1]])
    return session


class TestPerExample:
    @pytest.mark.parametrize("tokens", [1, 3, 40])
    def test_both_ways_give_the_norm_of_each_examples_gradient(self, tokens: int) -> None:
        draw = torch.Generator().manual_seed(1)
        inputs, gradients = (torch.randn(5, tokens, width, generator=draw) for width in (9, 4))
        products = torch.stack([g.T @ a for g, a in zip(gradients, inputs, strict=True)])
        torch.testing.assert_close(squared_rows(inputs, gradients), products.square().sum(dim=2))
        torch.testing.assert_close(squared_norms(inputs, gradients), products.square().sum(dim=(1, 2)))

    def test_what_is_no_linear_map_is_declined_by_its_name(self) -> None:
        session = trained_session()
        session.model.get_submodule("layers.1.query").lora_A = torch.nn.Identity()
        with pytest.raises(
            JobDeclined, match=r"'layers\.1\.query\.lora_A\.weight' is not the weight of a linear map"
        ):
            factor_maps(session, ["layers.1.query.lora_A.weight"])


class TestDifficulty:
    def test_a_duplicated_example_keeps_its_score_in_whatever_batch_it_stands(self) -> None:
        session = with_a_twin(trained_session())
        scores = fisher_traces(session, layer_tensors(session.facts), range(12), 5)
        assert scores[0] == pytest.approx(float(scores[11]), rel=1e-6)
        assert len(scores.unique()) >= 9

    def test_scoring_leaves_no_gradient_behind(self) -> None:
        session = trained_session()
        fisher_traces(session, layer_tensors(session.facts), range(12), 5)
        assert all(value.grad is None for value in session.trainables.values())

    @pytest.mark.parametrize("order_by", ["fisher", "loss", "length", "random", "reversed"])
    def test_every_order_scores_every_example(self, order_by: str) -> None:
        session = trained_session()
        layered = layer_tensors(session.facts)
        made = difficulty(session, FibecFedConfig(order_by=order_by, score_batch_size=5), layered)  # type: ignore[arg-type]
        assert made.shape == (12,)
        expected = {"fisher": fisher_traces(session, layered, range(12), 12), "length": torch.full((12,), 6.0)}
        expected["reversed"] = -expected["fisher"]
        batch = next(session.batches(range(12), 12))
        expected["loss"] = session.loss(batch, "none").detach()
        if order_by == "random":
            assert len(made.unique()) == 12
        else:
            torch.testing.assert_close(made, expected[order_by])


class TestNoise:
    GRADIENT = torch.tensor([[[3.0, -4.0], [0.0, 1e-12]], [[0.0, 0.0], [0.0, 0.0]], [[1e-30, 1e-30], [0.0, -1e-30]]])
    SIZE = torch.tensor([0.5, 2.0, 1.0])

    @pytest.mark.parametrize("p", [1.5, 2.0, 3.0, 50.0])
    def test_its_norm_is_the_one_asked_for(self, p: float) -> None:
        noise = dual_noise(self.GRADIENT, self.SIZE, p).flatten(1)
        norms = torch.linalg.vector_norm(noise, p, dim=1).tolist()
        assert norms == pytest.approx([0.5, 0.0, 1.0], rel=1e-4)

    def test_for_the_euclidean_norm_it_lies_along_the_gradient(self) -> None:
        noise = dual_noise(self.GRADIENT, self.SIZE, 2.0)[0]
        torch.testing.assert_close(noise, torch.tensor([[0.3, -0.4], [0.0, 0.0]]))

    def test_for_the_largest_norm_it_is_the_sign_times_the_size(self) -> None:
        noise = dual_noise(self.GRADIENT, self.SIZE, math.inf)
        assert noise[0].tolist() == [[0.5, -0.5], [0.0, 0.5]]
        assert not noise[1].any()

    def test_no_other_noise_of_that_norm_raises_the_loss_more(self) -> None:
        draw = torch.Generator().manual_seed(0)
        gradient = torch.randn(1, 3, 4, generator=draw)
        best = float((dual_noise(gradient, torch.ones(1), 3.0) * gradient).sum())
        others = torch.randn(200, 3, 4, generator=draw).flatten(1)
        others = others / torch.linalg.vector_norm(others, 3, dim=1, keepdim=True)
        assert float((others @ gradient.flatten()).max()) < best


class TestLayers:
    def facts(self, names: list[str], layers: int = 3, **changes: Any) -> ModelFacts:
        start = Initialization(kind="zeros")
        tensors = tuple(
            TensorFacts(name=name, shape=(2, 2), dtype="F32", initialisation=start) for name in sorted(names)
        )
        known: dict[str, Any] = {"model_type": "t", "task_type": "SEQ_CLS", "hidden": 2, "kv_width": 2}
        return ModelFacts(tensors=tensors, layers=layers, weights_digest="sha256:" + "0" * 64, **known, **changes)

    def test_layers_are_told_apart_by_the_first_number_in_a_name(self) -> None:
        names = [f"h.layer.{layer}.experts.{e}.up.lora_A.weight" for layer in (10, 2) for e in (0, 1)]
        assert layer_tensors(self.facts([*names, "score.weight"], layers=12)) == {2: names[2:], 10: names[:2]}

    @pytest.mark.parametrize(
        "names", [["query.lora_A.weight"], ["a.0.q.lora_A.weight", "b.0.q.lora_A.weight"], ["a.3.q.lora_A.weight"]]
    )
    def test_a_model_whose_layers_cannot_be_told_apart_is_refused_with_its_modules(self, names: list[str]) -> None:
        with pytest.raises(ValueError, match=r"cannot be told apart; adapted are: (query|a\.)"):
            layer_tensors(self.facts(names))

    def test_of_a_head_of_two_maps_the_one_to_the_classes_is_trained(self) -> None:
        facts = TinyFederation(trainable=LORA).open(0, 0).facts
        start = Initialization(kind="zeros")
        dense = tuple(
            TensorFacts(name=f"classifier.a.{name}", shape=shape, dtype="F32", initialisation=start)
            for name, shape in (("bias", (8,)), ("weight", (8, 8)))
        )
        last = TensorFacts(name="classifier.b.weight", shape=(3, 8), dtype="F32", initialisation=start)
        kept = [one for one in facts.tensors if "classifier" not in one.name]
        two = facts.model_copy(update={"tensors": (*dense, last, *kept)})
        assert rest_of_head(facts) == []
        assert rest_of_head(two) == ["classifier.a.bias", "classifier.a.weight"]

    def test_the_most_sensitive_layers_are_chosen_and_of_equals_the_lower(self) -> None:
        config = FibecFedConfig(layer_factor=0.5)
        assert chosen_layers(config, {0: 1.0, 1: 3.0, 2: 3.0, 3: 3.0}, share=1.0) == [1, 2]

    def test_a_loss_that_cannot_be_differentiated_twice_is_declined(self) -> None:
        session = trained_session()
        session.layers()[1].register_forward_hook(lambda *told: Once.apply(told[2]))
        names = [name for layer in layer_tensors(session.facts).values() for name in layer]
        with pytest.raises(JobDeclined, match=r"second_derivative_missing.*layer_count 'fixed'"):
            shares_after_warm_up(session, FibecFedConfig(preparation_steps=0), names)


class TestRows:
    def test_the_most_important_rows_are_kept_and_of_equals_the_first(self) -> None:
        assert top_rows(torch.tensor([1.0, 5.0, 1.0, 7.0]), 0.75).tolist() == [True, True, False, True]
        assert top_rows(torch.tensor([1.0, 5.0]), 0.2).tolist() == [False, False]

    def test_importance_after_one_step_is_the_mean_of_the_examples_squares(self) -> None:
        """Of 12 examples in one batch: 1 - 0.75 times the mean of each row's squared norm, by autograd one by one."""
        config = FibecFedConfig(batch_size=12, fisher_momentum=0.75, learning_rate=1e-9)
        name = "layers.1.query.lora_B.weight"
        by_hand, session = torch.zeros(8), trained_session()
        for batch in session.batches(range(12), 1):
            (gradient,) = torch.autograd.grad(session.loss(batch), [session.trainables[name]])
            by_hand += gradient.square().sum(dim=1) / 12
        torch.testing.assert_close(row_importance(session, config, [name])[name], 0.25 * by_hand)

    @pytest.mark.parametrize(("share", "chosen"), [(0.0, False), (1.0, True)])
    def test_none_or_all_needs_no_warm_up(self, share: float, chosen: bool) -> None:
        session = trained_session()
        rows = chosen_rows(session, FibecFedConfig(local_share=share), ["layers.0.query.lora_A.weight"])
        assert rows["layers.0.query.lora_A.weight"].tolist() == [chosen, chosen]
        assert session.forward_examples == []


def test_a_batch_says_which_tokens_are_an_examples() -> None:
    batch = next(trained_session().batches([0, 3], 2))
    assert isinstance(batch, TinyBatch)
    assert batch.mask.shape == batch.tokens.shape
