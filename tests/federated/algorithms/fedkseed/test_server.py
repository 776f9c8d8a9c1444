"""The coordinator's half: bytes, refusals, and the mean of what clients told."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from federated.contract import ClientFacts, ClientUpdate, RoundFacts, ServerHalf, UpdateRefused
from federated.payloads.payload import Payload
from federated.registry import make_config, server_half
from federated.trainable import Full, Initialization, Lora, ModelFacts, TensorFacts

STEP = RoundFacts(1, "train", 5, 2)
CLIENT = ClientFacts(1, "one", 4, {}, {}, None, 0)
HEADER_AND_FACTS = 1024


def facts(layers: int = 2, **tensors: Any) -> ModelFacts:
    """A model whose layers are the base's and whose head starts from the seed."""
    base, head = Initialization(kind="base"), Initialization(kind="normal", scale=0.1)
    rows = {f"layers.{n}.weight": ((8, 16), base) for n in range(layers)} | {"classifier.weight": ((3, 8), head)}
    made = [
        TensorFacts(name=name, shape=shape, dtype="F32", initialisation=start)
        for name, (shape, start) in sorted((rows | tensors).items())
    ]
    return ModelFacts(
        model_type="tiny", task_type="SEQ_CLS", tensors=tuple(made), layers=layers, hidden=8, kv_width=8,
        weights_digest="sha256:" + "0" * 64,
    )  # fmt: skip


def half(**settings: Any) -> ServerHalf:
    return server_half("fedkseed", make_config("fedkseed", settings), Full())


def told(seeds: Sequence[int], scalars: Sequence[float]) -> Payload:
    return Payload({"seeds": torch.tensor(seeds, dtype=torch.int32), "scalars": torch.tensor(scalars)})


def update(ordinal: int, weight: float, seeds: Sequence[int], scalars: Sequence[float], **metrics: float) -> Any:
    return ClientUpdate(ordinal, int(weight), weight, told(seeds, scalars), metrics, None)


def planned(server: ServerHalf, step: RoundFacts = STEP, model: ModelFacts | None = None) -> Payload:
    state = server.start(model or facts(), 0, None)
    return Payload.decode(server.plan(state, [CLIENT], step)[1].encode())


def tensor_bytes(payload: Payload) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in payload.values())


class TestBytes:
    @pytest.mark.parametrize(
        ("settings", "down", "up", "total"),
        [
            ({"candidates": 4096}, 16_384, 1600, 17_984),
            ({"candidates": 1024, "variant": "pro"}, 8192, 1600, 9792),
            ({"candidates": 4096, "directions": "gaussian", "perturb": ["layers.*"]}, 16_384, 1600, 17_984),
        ],
    )
    def test_a_round_costs_a_client_what_the_paper_says(
        self, settings: Mapping[str, Any], down: int, up: int, total: int
    ) -> None:
        # A hundred layers: nothing of the model is in an instruction.
        server = half(local_steps=200, **settings)
        instruction = planned(server, model=facts(layers=100))
        answer = told(range(200), [1.5] * 200)
        server.check(instruction, answer)
        assert (tensor_bytes(instruction), tensor_bytes(answer)) == (down, up)
        assert tensor_bytes(instruction) + tensor_bytes(answer) == total
        assert len(instruction.encode()) - down <= HEADER_AND_FACTS
        assert len(answer.encode()) - up <= HEADER_AND_FACTS


class TestStart:
    def test_an_initial_adapter_is_refused_by_name(self) -> None:
        given = Payload({"classifier.weight": torch.zeros(3, 8)})
        with pytest.raises(ValueError, match=r"initial adapter: tensor 'classifier\.weight' would have to travel"):
            half().start(facts(), 0, given)

    def test_patterns_that_match_nothing_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"perturb \('decoder\.\*',\) matches none of the 3 trained tensors"):
            half(perturb=["decoder.*"]).start(facts(), 0, None)

    def test_lora_beside_a_tensor_of_the_base_is_refused_by_name(self) -> None:
        server = server_half("fedkseed", make_config("fedkseed", {}), Lora())
        with pytest.raises(ValueError, match=r"tensor 'layers\.0\.weight' starts from the base model"):
            server.start(facts(), 0, None)

    def test_the_step_size_is_that_of_the_perturbed_elements(self) -> None:
        assert planned(half()).facts["learning_rate"] == 64 / (2 * 128 + 24)
        assert planned(half(perturb=["layers.1.*"])).facts["learning_rate"] == 64 / 128
        assert planned(half(learning_rate=0.5)).facts["learning_rate"] == 0.5


class TestCheck:
    @pytest.mark.parametrize(
        ("seeds", "scalars", "tensor", "reason"),
        [
            ([-1], [1.0], "seeds", "names direction -1 at position 0, there are 128"),
            ([5, 128], [1.0, 1.0], "seeds", "names direction 128 at position 1"),
            ([5, 6], [1.0, math.nan], "scalars", "is nan at position 1, at most 50 is allowed"),
            ([5], [math.inf], "scalars", "is inf at position 0"),
            ([5], [-51.0], "scalars", "is -51 at position 0"),
            ([5, 6], [1.0], "scalars", "has 1 entries for 2 seeds"),
            ([1, 2, 3, 4], [1.0] * 4, "scalars", r"has shape \[4\], at most \[3\] is allowed"),
        ],
    )
    def test_what_no_honest_client_sends_is_refused(
        self, seeds: list[int], scalars: list[float], tensor: str, reason: str
    ) -> None:
        server = half(candidates=128, local_steps=3, max_scalar=50)
        with pytest.raises(UpdateRefused, match=reason) as caught:
            server.check(planned(server), told(seeds, scalars))
        assert caught.value.tensor == tensor

    @pytest.mark.parametrize("pairs", [0, 1, 3])
    def test_fewer_pairs_than_steps_are_accepted(self, pairs: int) -> None:
        server = half(candidates=128, local_steps=3)
        server.check(planned(server), Payload.decode(told([1] * pairs, [2.0] * pairs).encode()))


class TestAggregate:
    def test_scalars_count_by_the_clients_examples_and_the_rounds_step_size(self) -> None:
        server = half(candidates=128, learning_rate=0.5)
        state = server.start(facts(), 0, None)
        outcome = server.aggregate(state, [update(1, 1, [3, 3], [2.0, 4.0]), update(2, 3, [3, 7], [8.0, -4.0])], STEP)
        # 0.5 * (1/4 * 6 + 3/4 * 8) and 0.5 * 3/4 * -4.
        sums = outcome.state["accumulators"]
        assert (float(sums[3]), float(sums[7]), int(sums.count_nonzero())) == (3.75, -1.5, 2)
        assert outcome.metrics["pairs"] == 4

    def test_equal_weighting_counts_clients_alike(self) -> None:
        server = half(candidates=128, learning_rate=0.5, weighting="equal")
        state = server.start(facts(), 0, None)
        outcome = server.aggregate(state, [update(1, 1, [3], [2.0]), update(2, 3, [3], [8.0])], STEP)
        assert float(outcome.state["accumulators"][3]) == 2.5

    def test_pro_counts_scalars_and_draws_by_their_size_next_time(self) -> None:
        server = half(candidates=128, variant="pro", max_scalar=5)
        state = server.start(facts(), 0, None)
        first = server.plan(state, [CLIENT], STEP)[1]["probabilities"]
        assert torch.equal(first, torch.full((128,), 1 / 128))
        state = server.aggregate(state, [update(1, 1, [3, 3, 9], [4.0, -4.0, 1.0])], STEP).state
        assert (state["counts"][3], state["sums"][3], state["counts"][9]) == (2, 8.0, 1)
        later = server.plan(state, [CLIENT], RoundFacts(2, "train", 5, 2))[1]["probabilities"]
        assert later.argmax() == 3
        assert float(later[3] / later[0]) == pytest.approx(math.e, rel=1e-6)

    def test_a_schedule_is_folded_into_the_sums(self) -> None:
        server = half(candidates=128, learning_rate=1.0, schedule="linear", final_fraction=0.0)
        state = server.start(facts(), 0, None)
        for number in (1, 2, 3):
            step = RoundFacts(number, "train", 3, 1)
            state = server.aggregate(state, [update(1, 1, [0], [1.0])], step).state
        assert float(state["accumulators"][0]) == 1.5
        assert server.plan(state, [CLIENT], RoundFacts(2, "train", 3, 1))[1].facts["learning_rate"] == 0.5

    def test_metrics_of_clients_are_weighted_means(self) -> None:
        server = half(candidates=128)
        state = server.start(facts(), 0, None)
        updates = [update(1, 1, [1], [1.0], loss=4.0), update(2, 3, [1], [1.0], loss=2.0)]
        assert server.aggregate(state, updates, STEP).metrics["train_loss"] == 2.5

    @pytest.mark.parametrize("loss", [1.7e308, -1.7e308, 1e10, float("inf"), float("nan")])
    def test_a_metric_that_no_sum_can_hold_counts_for_nothing(self, loss: float) -> None:
        server = half(candidates=128)
        state = server.start(facts(), 0, None)
        updates = [update(1, 1, [1], [1.0], loss=loss), update(2, 3, [1], [1.0], loss=2.0)]
        assert server.aggregate(state, updates, STEP).metrics["train_loss"] == 2.0
        assert "train_loss" not in server.aggregate(state, updates[:1] * 2, STEP).metrics
