"""Tests of the choice of layers: scores of known batches, and the server's choice by the clients' measurements."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from federated.contract import ClientFacts, ClientUpdate, Outcome, RoundFacts, UpdateRefused
from federated.payloads.payload import Payload
from federated.registry import client_half, make_config, server_half
from federated.trainable import Prefix
from tests.support.tiny_model import LAYERS, TinyLayer
from tests.support.tiny_session import TinyFederation, TinySession

PREFIX = Prefix(num_virtual_tokens=2)
CLIENT = ClientFacts(0, "", 12, {}, {}, None, 0)
PREPARE = RoundFacts(1, "prepare", 5, 2)
EPSILON = 1e-5


class ConstantLayer(nn.Module):
    """A layer whose output is given."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, hidden: Tensor, prefix: Tensor | None = None) -> Tensor:
        return self.output


def scores_by_client(session: TinySession, **settings: Any) -> list[float]:
    config = make_config("fedpeptao", settings)
    server = server_half("fedpeptao", config, PREFIX)
    instruction = server.plan(server.start(session.facts, 0, None), [CLIENT], PREPARE)[0]
    result = client_half("fedpeptao", config, PREFIX).run(instruction, session, None)
    server.check(instruction, result.update)
    assert result.memory is None
    scores: list[float] = result.update["layer_scores"].tolist()
    return scores


def scores_of(*outputs: Tensor) -> list[float]:
    """Scores of layers that give these outputs, (8, tokens, hidden), whatever goes in."""
    session = TinyFederation(trainable=PREFIX, examples=8).open(0, 1)
    model: Any = session.model
    model.layers = nn.ModuleList(ConstantLayer(output) for output in outputs)
    return scores_by_client(session)


def orthogonal() -> Tensor:
    """Eight examples over six tokens of width eight."""
    return torch.eye(8).repeat(1, 6).reshape(8, 6, 8)


class TestScores:
    def test_orthogonal_examples_have_the_known_score(self) -> None:
        reference = 8 * (math.log(1 + EPSILON) + 1 / (1 + EPSILON))
        assert scores_of(*[orthogonal()] * 3) == pytest.approx([reference] * 3, rel=1e-6)

    def test_examples_that_look_the_same_have_the_highest_score(self) -> None:
        # One eigenvalue of 8 and seven of 0.
        alike = torch.ones(8, 6, 8)
        reference = math.log(8 + EPSILON) + 1 / (8 + EPSILON) + 7 * (math.log(EPSILON) + 1 / EPSILON)
        same, apart, near = scores_of(alike, orthogonal(), alike + 0.5 * orthogonal())
        assert same == pytest.approx(reference, rel=1e-4)
        assert same > near > apart

    def test_scale_and_order_of_the_examples_do_not_matter(self) -> None:
        outputs = torch.randn(8, 6, 8, generator=torch.Generator().manual_seed(0))
        larger_outputs = outputs * torch.arange(1, 9).reshape(8, 1, 1)
        plain, larger, reordered = scores_of(outputs, larger_outputs, outputs.flip(0))
        assert larger == pytest.approx(plain, rel=1e-6)
        assert reordered == pytest.approx(plain, rel=1e-6)

    def test_every_layer_is_scored_by_what_it_gives_in_the_model_as_it_is(self) -> None:
        session = TinyFederation(trainable=PREFIX).open(0, 1)
        before = session.read()
        scores = scores_by_client(session)
        assert len(scores) == LAYERS
        assert len(set(scores)) == LAYERS
        assert all(torch.equal(value, before[name]) for name, value in session.read().items())
        assert session.forward_examples == [8]
        assert not any(layer._forward_hooks for layer in session.layers())

    def test_a_client_with_fewer_examples_scores_with_those_it_has(self) -> None:
        session = TinyFederation(trainable=PREFIX, examples=3).open(0, 1)
        assert len(scores_by_client(session)) == LAYERS
        assert session.forward_examples == [3]

    def test_a_single_example_says_the_same_of_every_layer(self) -> None:
        scores = scores_by_client(TinyFederation(trainable=PREFIX, examples=1).open(0, 1))
        assert scores == pytest.approx([math.log(1 + EPSILON) + 1 / (1 + EPSILON)] * LAYERS)

    def test_a_layer_may_give_a_tuple(self) -> None:
        plain = TinyFederation(trainable=PREFIX).open(0, 1)
        session = TinyFederation(trainable=PREFIX).open(0, 1)
        for layer in session.layers():
            assert isinstance(layer, TinyLayer)
        model: Any = session.model
        plain_scores = scores_by_client(plain)
        tuple_scores = []
        first = model.layers[0]
        hook = first.register_forward_hook(lambda *given: (given[2], None))
        second = model.layers[1]
        unpack = second.register_forward_pre_hook(lambda _, given: (given[0][0], *given[1:]))
        tuple_scores = scores_by_client(session)
        hook.remove()
        unpack.remove()
        assert tuple_scores == plain_scores


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("layer_scores", torch.ones(LAYERS - 1), r"has shape \[2\], expected \[3\]"),
        ("layer_scores", torch.ones(LAYERS + 1), r"has shape \[4\], expected \[3\]"),
        ("shares", torch.tensor([0.5, 1.5]), "share outside of 0 to 1"),
        ("shares", torch.tensor([-0.1, 0.5]), "share outside of 0 to 1"),
    ],
)
def test_scores_of_other_layers_and_shares_out_of_range_are_refused(name: str, value: Tensor, problem: str) -> None:
    server = server_half(
        "fedpeptao", make_config("fedpeptao", {"layer_count": "spectrum", "warmup_rounds": 0}), PREFIX
    )
    state = server.start(TinyFederation(trainable=PREFIX).open(0, 0).facts, 0, None)
    instruction = server.plan(state, [CLIENT], PREPARE)[0]
    tensors = {"layer_scores": torch.ones(LAYERS), "shares": torch.tensor([0.5, 1.0])}
    server.check(instruction, Payload(tensors))
    with pytest.raises(UpdateRefused, match=problem) as error:
        server.check(instruction, Payload(tensors | {name: value}))
    assert error.value.tensor == name


def choice(scores: dict[int, list[float]], examples: dict[int, int], **settings: Any) -> Outcome:
    server = server_half("fedpeptao", make_config("fedpeptao", settings), PREFIX)
    state = server.start(TinyFederation(trainable=PREFIX).open(0, 0).facts, 0, None)
    updates = [
        ClientUpdate(n, examples[n], float(examples[n]), Payload({"layer_scores": torch.tensor(values)}), {}, None)
        for n, values in scores.items()
    ]
    return server.aggregate(state, updates, PREPARE)


class TestChoice:
    def test_the_layers_that_tell_least_apart_travel(self) -> None:
        assert choice({0: [1.0, 3.0, 2.0]}, {0: 5}).state.facts["travelling"] == [1, 2]

    def test_a_client_counts_by_its_examples(self) -> None:
        scores = {0: [3.0, 0.0, 0.0], 1: [0.0, 1.0, 0.9]}
        assert choice(scores, {0: 1, 1: 9}, layer_share=0.3).state.facts["travelling"] == [1]
        assert choice(scores, {0: 9, 1: 1}, layer_share=0.3).state.facts["travelling"] == [0]

    @pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.4, 1), (0.5, 2), (0.8, 2), (0.84, 3), (1.0, 3)])
    def test_the_number_of_layers_is_the_rounded_share(self, share: float, count: int) -> None:
        outcome = choice({0: [1.0, 3.0, 2.0]}, {0: 5}, layer_share=share)
        assert len(outcome.state.facts["travelling"]) == count == outcome.metrics["layers_travelling"]

    def test_the_last_layer_may_be_left_out(self) -> None:
        outcome = choice({0: [1.0, 2.0, 3.0]}, {0: 5}, layer_share=1.0, skip_last=True)
        assert outcome.state.facts["travelling"] == [0, 1]

    def test_of_equal_layers_the_lower_travels(self) -> None:
        assert choice({0: [2.0, 2.0, 2.0]}, {0: 5}, layer_share=0.5).state.facts["travelling"] == [0, 1]

    def test_the_state_keeps_the_chosen_layers_alone_and_says_what_was_measured(self) -> None:
        state = choice({0: [1.0, 3.0, 2.0]}, {0: 5}, layer_share=0.3).state
        assert list(state) == ["classifier.bias", "classifier.weight", "prompt_embeddings/layer.1"]
        assert state.facts["layer_scores"] == [1.0, 3.0, 2.0]
        assert state.facts["phase"] == "train"
