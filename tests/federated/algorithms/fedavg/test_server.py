"""Tests of FedAvg's server half, with numbers derived by hand.

The adaptive optimizers' values come from this script, for x = 1, mean updates 0.5 and then -0.25:

    for kind in ("adagrad", "adam", "yogi"):
        x, m, v = 1.0, 0.0, 0.1**2
        for d in (0.5, -0.25):
            m = 0.9 * m + 0.1 * d
            sign = (v > d * d) - (v < d * d)
            v = {"adagrad": v + d * d, "adam": 0.99 * v + 0.01 * d * d, "yogi": v - 0.01 * d * d * sign}[kind]
            x += 0.1 * m / (sqrt(v) + 0.1)
            print(kind, x)
"""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from federated.contract import ClientFacts, ClientUpdate, Outcome, RoundFacts, ServerHalf, UpdateRefused
from federated.maths.initialization import start
from federated.payloads.payload import Payload
from federated.registry import make_config, server_half
from federated.trainable import Initialization, Lora, ModelFacts, TensorFacts

STEP = RoundFacts(1, "train", 5, 2)
CLIENT = ClientFacts(1, "one", 4, {}, {}, None, 0)
ADAPTIVE = {"server_learning_rate": 0.1, "server_tau": 0.1}


def tensor(name: str, kind: Any, shape: tuple[int, ...] = (2,), scale: float = 0.5) -> TensorFacts:
    return TensorFacts(name=name, shape=shape, dtype="F32", initialisation=Initialization(kind=kind, scale=scale))


def model(*tensors: TensorFacts, seeded: tuple[TensorFacts, ...] = ()) -> ModelFacts:
    tensors_by_name = tuple(sorted(tensors, key=lambda one: one.name))
    sizes = {"layers": 1, "hidden": 2, "kv_width": 2}
    weights = "sha256:" + "0" * 64
    return ModelFacts(
        model_type="tiny",
        task_type="SEQ_CLS",
        tensors=tensors_by_name,
        seeded=seeded,
        weights_digest=weights,
        **sizes,
    )


LORA = model(
    tensor("layer.lora_A.weight", "uniform"),
    tensor("layer.lora_B.weight", "zeros"),
    tensor("embed.lora_embedding_A", "zeros"),
    tensor("embed.lora_embedding_B", "normal"),
    tensor("classifier.weight", "normal"),
    seeded=(tensor("pooler.weight", "normal"),),
)


def half(**settings: Any) -> ServerHalf:
    return server_half("fedavg", make_config("fedavg", settings), Lora())


def update(ordinal: int, weight: float, tensors: Mapping[str, Any], **metrics: float) -> ClientUpdate:
    values = {name: torch.as_tensor(value) for name, value in tensors.items()}
    return ClientUpdate(ordinal, int(weight), weight, Payload(values), metrics, None)


def means(server: ServerHalf, first: float, *mean_updates: float) -> list[float]:
    """The value of one number after each aggregation of two clients whose weighted mean is given."""
    state = server.start(model(tensor("x", "zeros", (1,))), 0, Payload({"x": torch.tensor([first])}))
    values = []
    for mean in mean_updates:
        updates = [update(1, 1, {"x": [4 * mean]}), update(2, 3, {"x": [0.0]})]
        state = Payload.decode(server.aggregate(state, updates, STEP).state.encode())
        values.append(float(state["x"]))
    return values


class TestAggregate:
    def test_plain_averaging_moves_to_the_mean_of_the_clients(self) -> None:
        assert means(half(), 1.0, 0.5, -0.25) == [1.5, 1.25]

    def test_the_server_learning_rate_scales_the_step(self) -> None:
        assert means(half(server_learning_rate=0.5), 1.0, 0.5, -0.25) == [1.25, 1.125]

    def test_momentum_adds_nine_tenths_of_the_step_before(self) -> None:
        # m = 0.5, x = 1.5; m = 0.9 * 0.5 - 0.25 = 0.2, x = 1.7.
        assert means(half(server_optimizer="momentum"), 1.0, 0.5, -0.25) == pytest.approx([1.5, 1.7])

    @pytest.mark.parametrize(
        ("optimizer", "values"),
        [
            ("adagrad", [1.008198039, 1.01119254]),
            ("adam", [1.023656848, 1.033020908]),
            ("yogi", [1.023606798, 1.032928009]),
        ],
    )
    def test_adaptive_optimizers_give_the_numbers_of_the_script(self, optimizer: str, values: list[float]) -> None:
        assert means(half(server_optimizer=optimizer, **ADAPTIVE), 1.0, 0.5, -0.25) == pytest.approx(values, rel=1e-6)

    def test_the_order_of_the_updates_does_not_change_the_bytes(self) -> None:
        server = half(server_optimizer="adam")
        state = server.start(model(tensor("x", "normal", (50,))), 3, None)
        updates = [update(number, number + 0.3, {"x": torch.randn(50)}, loss=0.1 * number) for number in range(1, 6)]
        one, other = server.aggregate(state, updates, STEP), server.aggregate(state, updates[::-1], STEP)
        assert one.state.encode() == other.state.encode()
        assert one.metrics == other.metrics

    def test_metrics_are_means_by_weight_of_those_who_told_them(self) -> None:
        server = half()
        state = server.start(model(tensor("x", "zeros", (1,))), 0, None)
        updates = [
            update(1, 1, {"x": [0.0]}, loss=1.0, update_norm=2.0, steps=3.0),
            update(2, 3, {"x": [0.0]}, loss=2.0, update_norm=6.0, accuracy=0.5),
        ]
        assert server.aggregate(state, updates, STEP).metrics == {
            "train_loss": 1.75, "train_accuracy": 0.5, "update_norm": 5.0,
        }  # fmt: skip

    def test_shards_joined_are_the_whole(self) -> None:
        server = half(server_optimizer="yogi")
        state = server.start(model(*(tensor(name, "normal") for name in ("a", "b", "c"))), 0, None)
        values = {name: torch.randn(2) for name in ("a", "b", "c")}
        updates = [update(1, 1, values, loss=1.0), update(2, 2, values, loss=2.0)]
        whole = server.aggregate(state, updates, STEP)
        parts = [_shard(server, state, updates, names) for names in (("a", "c"), ("b",))]
        outcome = server.join(state, parts, STEP)
        assert outcome.state.encode() == whole.state.encode()
        assert outcome.metrics == whole.metrics


def _shard(server: ServerHalf, state: Payload, updates: list[ClientUpdate], names: tuple[str, ...]) -> Outcome:
    part = Payload({name: state.lazy(name) for name in state if name.partition("/")[0] in names}, state.facts)
    cut = [
        update(one.ordinal, one.weight, {name: one.payload[name] for name in names}, **one.metrics) for one in updates
    ]
    return server.aggregate(part, cut, STEP)


class TestStart:
    def test_every_tensor_starts_as_its_facts_say(self) -> None:
        state = half().start(LORA, 9, None)
        assert list(state) == [one.name for one in LORA.tensors]
        assert all(torch.equal(state[one.name], start(9, one)) for one in LORA.tensors)

    def test_an_initial_adapter_takes_the_place_of_the_starts_it_names(self) -> None:
        initial = Payload({"classifier.weight": torch.tensor([1.0, 2.0], dtype=torch.bfloat16)})
        state = half().start(LORA, 9, initial)
        assert state["classifier.weight"].tolist() == [1.0, 2.0]
        assert torch.equal(state["layer.lora_A.weight"], start(9, LORA.tensors[-2]))

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("other.weight", torch.zeros(2), "'other.weight' is not one of this model's"),
            ("classifier.weight", torch.zeros(3), r"'classifier.weight' has shape \[3\], expected \[2\]"),
            ("layer.bias", torch.zeros(2), "'layer.bias' is a value, but it travels as a difference"),
        ],
    )
    def test_an_initial_tensor_that_does_not_fit_is_named(self, name: str, value: Tensor, words: str) -> None:
        facts = model(*LORA.tensors, tensor("layer.bias", "base"))
        with pytest.raises(ValueError, match=words):
            half().start(facts, 0, Payload({name: value}))

    def test_moments_start_at_zero_and_at_the_square_of_tau(self) -> None:
        state = half(server_optimizer="adam", server_tau=0.5).start(model(tensor("x", "normal")), 0, None)
        assert list(state) == ["x", "x/momentum", "x/second"]
        assert state["x/momentum"].tolist() == [0.0, 0.0]
        assert state["x/second"].tolist() == [0.25, 0.25]


class TestPlan:
    def test_all_get_the_current_values_and_nothing_of_the_optimizer(self) -> None:
        server = half(server_optimizer="adam", upload_dtype="bfloat16")
        state = server.start(model(tensor("x", "normal")), 0, None)
        other = ClientFacts(7, "seven", 1, {}, {}, None, 0)
        instructions = server.plan(state, [CLIENT, other], STEP)
        assert list(instructions) == [1, 7]
        assert instructions[1].encode() == instructions[7].encode()
        assert list(instructions[1]) == ["x"]
        assert instructions[1].facts["expects"] == {"x": {"dtype": "BF16", "shape": [2]}}

    def test_freezing_a_keeps_the_randomly_started_factors_at_home(self) -> None:
        server = half(freeze_a=True)
        instruction = server.plan(server.start(LORA, 0, None), [CLIENT], STEP)[1]
        assert instruction.facts["frozen"] == ["embed.lora_embedding_B", "layer.lora_A.weight"]
        assert set(instruction) == {"classifier.weight", "embed.lora_embedding_A", "layer.lora_B.weight"}
        assert instruction.facts["expects"].keys() == set(instruction)


class TestCheck:
    INSTRUCTION = Payload(
        {}, {"expects": {"x": {"dtype": "F32", "shape": [2]}, "y": {"dtype": "F32", "max_shape": [2]}}}
    )

    def test_what_was_asked_for_passes(self) -> None:
        half().check(self.INSTRUCTION, Payload({"x": torch.zeros(2), "y": torch.zeros(1)}))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"x": torch.zeros(3)}, "tensor 'x' has shape"),
            ({"x": torch.zeros(2, dtype=torch.float16)}, "tensor 'x' has dtype F16, expected F32"),
            ({"y": torch.zeros(3)}, "tensor 'y' has shape .* at most"),
            ({"z": torch.zeros(2)}, "tensor 'z' is not expected"),
        ],
    )
    def test_what_was_not_is_named(self, change: dict[str, Tensor], words: str) -> None:
        with pytest.raises(UpdateRefused, match=words):
            half().check(self.INSTRUCTION, Payload({"x": torch.zeros(2), "y": torch.zeros(1)} | change))

    def test_a_missing_tensor_is_named(self) -> None:
        with pytest.raises(UpdateRefused, match="tensor 'y' is missing"):
            half().check(self.INSTRUCTION, Payload({"x": torch.zeros(2)}))


class TestExport:
    def test_the_adapter_has_what_was_shared_and_what_kept_its_start(self) -> None:
        server = half(freeze_a=True)
        adapter = server.export(server.start(LORA, 9, None))
        starts = {one.name: start(9, one) for one in (*LORA.tensors, *LORA.seeded)}
        assert adapter.kind == "peft"
        assert adapter.tensors.keys() == starts.keys()
        assert all(torch.equal(adapter.tensors[name], value) for name, value in starts.items())

    def test_values_of_an_initial_adapter_that_nobody_trains_reach_clients_and_export(self) -> None:
        server = half(freeze_a=True)
        initial = {"layer.lora_A.weight": torch.tensor([3.0, 4.0]), "pooler.weight": torch.tensor([5.0, 6.0])}
        state = server.start(LORA, 9, Payload(initial))
        instruction = server.plan(state, [CLIENT], STEP)[1]
        zeros = update(1, 1, {name: torch.zeros(2) for name in instruction.facts["expects"]})
        adapter = server.export(server.aggregate(state, [zeros], STEP).state)
        for name, value in initial.items():
            assert torch.equal(instruction[f"{name}/frozen"], value)
            assert torch.equal(adapter.tensors[name], value)
            assert name not in instruction.facts["expects"]

    def test_a_difference_is_exported_on_top_of_the_base_value_that_the_first_cohort_told(self) -> None:
        server = half(server_optimizer="momentum")
        state = server.start(model(tensor("bias", "base")), 0, None)
        with pytest.raises(ValueError, match="'bias' is a difference"):
            server.export(state)
        expects = server.plan(state, [CLIENT], STEP)[1].facts["expects"]
        assert expects["bias/base"] == {"dtype": "F32", "shape": [2], "in_norm": False}
        first_update = update(1, 1, {"bias": torch.tensor([0.5, -0.5]), "bias/base": torch.tensor([10.0, 20.0])})
        state = server.aggregate(state, [first_update], STEP).state
        assert list(server.plan(state, [CLIENT], STEP)[1].facts["expects"]) == ["bias"]
        assert server.export(state).tensors["bias"].tolist() == [10.5, 19.5]
        state = server.aggregate(state, [update(1, 1, {"bias": torch.zeros(2)})], STEP).state
        assert math.isclose(server.export(state).tensors["bias"][0].item(), 10.95, rel_tol=1e-6)
