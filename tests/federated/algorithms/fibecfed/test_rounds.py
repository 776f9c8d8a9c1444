"""Tests of both halves of FibecFed together: shared tensors, private tensors, and equal methods."""

import functools
from typing import Any

import pytest
import torch

from federated import simulation
from federated.contract import ClientFacts, ClientResult, ClientUpdate, RoundFacts, UpdateRefused
from federated.payloads.payload import Payload
from federated.registry import client_half, make_config, server_half
from federated.simulation import Result, SimulatedFederation
from federated.trainable import Lora
from tests.support.messages import data_bytes
from tests.support.tiny_session import TinyFederation, TinySession

LORA = Lora(r=4, lora_alpha=8)
QUICK: dict[str, Any] = {"batch_size": 4, "learning_rate": 0.05, "layer_count": "fixed", "weight_decay": 0.3}
FEDERATION = TinyFederation(trainable=LORA, examples_of={0: 6, 1: 9, 2: 13})
FACTORS = {name for name in FEDERATION.open(0, 0).trainables if ".lora_" in name}
HEAD = {"classifier.bias", "classifier.weight"}


def run(algorithm: str, rounds: int = 3, trainable: Lora = LORA, **config: Any) -> Result:
    federation = SimulatedFederation(
        algorithm, make_config(algorithm, config), trainable, 3, rounds, clients_per_round=2, evaluate_every=1
    )
    clients = TinyFederation(trainable=trainable, examples_of=FEDERATION.examples_of)
    return simulation.run(federation, clients.open)


class FederationRig:
    """One federation, step by step."""

    def __init__(self, initial: Payload | None = None, **config: Any) -> None:
        settings = make_config("fibecfed", QUICK | config)
        self.server = server_half("fibecfed", settings, LORA)
        self.client = client_half("fibecfed", settings, LORA)
        self.state = self.server.start(FEDERATION.open(0, 0).facts, 0, initial)
        self.memories: dict[int, Payload] = {}
        self.last: dict[int, TinySession] = {}

    def step(self, number: int) -> RoundFacts:
        return RoundFacts(number, "prepare" if self.state.facts["layers"] is None else "train", 5, 3)

    def instruction(self, number: int = 1) -> Payload:
        client = ClientFacts(0, "one", 6, {}, {}, None, 0)
        return Payload.decode(self.server.plan(self.state, [client], self.step(number))[0].encode())

    def job(self, ordinal: int, memory: Payload | None = None, number: int = 1) -> ClientResult:
        self.last[ordinal] = FEDERATION.open(ordinal, 10 * number + ordinal)
        return self.client.run(self.instruction(number), self.last[ordinal], memory)

    def round(self, number: int = 1) -> None:
        updates = []
        for ordinal in range(3):
            result = self.job(ordinal, self.memories.get(ordinal), number)
            self.server.check(self.instruction(number), result.update)
            if result.memory is not None:
                self.memories[ordinal] = Payload.decode(result.memory.encode())
            examples = FEDERATION.examples_of[ordinal]
            updates.append(ClientUpdate(ordinal, examples, result.weight, result.update, result.metrics, None))
        self.state = Payload.decode(self.server.aggregate(self.state, updates, self.step(number)).state.encode())

    @property
    def private(self) -> set[str]:
        return {name for name in FACTORS if int(name.split(".")[1]) not in self.state.facts["layers"]}


def count_backward(passes: list[int], layer: int, module: Any, inputs: Any, output: torch.Tensor) -> None:
    """A forward hook that counts the gradients that reach a layer's output."""

    def count(_: torch.Tensor) -> None:
        passes[layer] += 1

    if output.requires_grad:
        output.register_hook(count)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_with_all_layers_all_rows_and_no_pacing_it_is_plain_averaging_bit_for_bit(dropout: float) -> None:
    lora = Lora(r=4, lora_alpha=8, lora_dropout=dropout)
    common = {"batch_size": 4, "learning_rate": 0.05, "local_epochs": 1.5}
    ours = {"layer_count": "fixed", "layer_share": 1.0, "pacing": "none", "local_share": 1.0}
    plain, fibecfed = run("fedavg", trainable=lora, **common), run("fibecfed", trainable=lora, **common, **ours)
    assert fibecfed.adapter.tensors.keys() == plain.adapter.tensors.keys()
    assert all(torch.equal(fibecfed.adapter.tensors[name], value) for name, value in plain.adapter.tensors.items())


class TestWhatTravels:
    def test_scores_are_all_that_a_preparation_sends(self) -> None:
        for count, names in (("fixed", ["layer_scores"]), ("spectrum", ["kept_share", "layer_scores"])):
            result = FederationRig(layer_count=count, lanczos_steps=4).job(1)
            assert list(result.update) == names
            assert result.update.shape("layer_scores") == (3,)

    def test_the_chosen_layers_and_the_head_go_up_and_down_and_nothing_else(self) -> None:
        rig = FederationRig()
        rig.round()
        assert len(rig.state.facts["layers"]) == 2
        shared_names = FACTORS - rig.private | HEAD
        instruction, result = rig.instruction(), rig.job(1, rig.memories[1])
        assert set(instruction) == set(result.update) == shared_names
        assert len(rig.private) == 2

    @pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
    def test_a_message_has_the_bytes_of_the_chosen_layers_and_the_head(self, dtype: str, size: int) -> None:
        """Two layers of A (4, 8) and B (8, 4), and a head of three classes over eight: 128 and 27 numbers."""
        rig = FederationRig(upload_dtype=dtype)
        rig.round()
        messages = rig.instruction(), rig.job(1, rig.memories[1]).update
        assert list(map(data_bytes, messages)) == [155 * 4, 155 * size]

    def test_bytes_are_the_share_of_layers_of_plain_averaging_and_the_head(self) -> None:
        def tensors(result: Result) -> int:
            return sum(value.numel() * 4 for name, value in result.state.items() if "/" not in name)

        head = 3 * 8 * 4 + 3 * 4
        plain, third = run("fedavg", batch_size=4), run("fibecfed", **QUICK | {"layer_share": 0.3})
        assert len(third.state.facts["layers"]) == 1
        assert 3 * (tensors(third) - head) == tensors(plain) - head

    def test_the_server_never_holds_a_private_factor(self) -> None:
        rig = FederationRig()
        for number in (1, 1, 2):
            rig.round(number)
        assert not rig.private & set(rig.state)

    def test_the_export_holds_private_layers_at_their_start(self) -> None:
        rig = FederationRig()
        for number in (1, 1, 2):
            rig.round(number)
        adapter, session = rig.server.export(rig.state), FEDERATION.open(0, 0)
        assert adapter.tensors.keys() == FACTORS | HEAD
        assert all(torch.equal(adapter.tensors[name], session.start(name)) for name in rig.private)

    def test_an_initial_adapters_private_layers_are_told_and_exported(self) -> None:
        inputs = {name: torch.full(FEDERATION.open(0, 0).trainables[name].shape, 0.25) for name in FACTORS}
        rig = FederationRig(Payload(inputs))
        assert set(rig.instruction()) == {f"{name}/frozen" for name in FACTORS}
        rig.round()
        assert {f"{name}/frozen" for name in rig.private} <= set(rig.instruction())
        session = FEDERATION.open(1, 0)
        rig.client.apply(rig.instruction(), session, None, "own")
        assert all(torch.equal(session.read()[name], inputs[name]) for name in FACTORS)
        tensors = rig.server.export(rig.state).tensors
        assert all(torch.equal(tensors[name], inputs[name]) for name in FACTORS)


class TestPrivateParts:
    def test_rows_that_were_not_chosen_keep_their_bits_in_every_round(self) -> None:
        rig = FederationRig()
        for number in (1, 1, 2):
            rig.round(number)
        memory, session = rig.memories[2], rig.last[2]
        for name in rig.private:
            rows = memory[f"{name}/rows"]
            start, value = session.start(name), memory[f"{name}/private"]
            assert 0 < int(rows.sum()) < len(rows)
            assert torch.equal(value[~rows], start[~rows])
            assert (value[rows] != start[rows]).any()

    def test_without_local_rows_no_gradient_goes_below_the_lowest_layer_that_travels(self) -> None:
        """Scores are the server's to weigh: here the top layer alone is chosen."""
        rig = FederationRig(local_share=0.0, layer_share=0.3)
        scores = Payload({"layer_scores": torch.tensor([0.0, 0.0, 1.0])})
        rig.memories[1] = rig.job(1).memory or Payload({})
        update = ClientUpdate(1, 9, 9.0, scores, {}, None)
        rig.state = rig.server.aggregate(rig.state, [update], RoundFacts(1, "prepare", 5, 3)).state
        session, passes = FEDERATION.open(1, 5), [0, 0, 0]
        for layer, module in enumerate(session.layers()):
            module.register_forward_hook(functools.partial(count_backward, passes, layer))
        result = rig.client.run(rig.instruction(), session, rig.memories[1])
        assert passes == [0, 0, int(result.metrics["steps"])]
        after = session.read()
        assert all(torch.equal(after[name], session.start(name)) for name in rig.private)

    def test_the_own_view_has_the_clients_layers_and_the_shared_one_their_start(self) -> None:
        rig = FederationRig()
        for number in (1, 1):
            rig.round(number)
        session, memory = FEDERATION.open(1, 0), rig.memories[1]
        rig.client.apply(rig.instruction(), session, memory, "own")
        own = session.read()
        assert all(torch.equal(own[name], memory[f"{name}/private"]) for name in rig.private)
        rig.client.apply(rig.instruction(), session, memory, "shared")
        assert all(torch.equal(session.read()[name], session.start(name)) for name in rig.private)

    def test_private_layers_go_on_where_they_were(self) -> None:
        """The second round of a client that remembers differs from that of one that forgot."""
        rig = FederationRig()
        for number in (1, 1):
            rig.round(number)
        with_memory, without_memory = rig.job(1, rig.memories[1], 2), rig.job(1, None, 2)
        assert with_memory.memory is not None
        assert without_memory.memory is not None
        name = min(rig.private)
        assert not torch.equal(with_memory.memory[f"{name}/private"], without_memory.memory[f"{name}/private"])


class TestMemory:
    def test_a_client_without_one_scores_inside_its_first_training_and_sends_no_scores(self) -> None:
        rig = FederationRig()
        rig.round()
        late = rig.job(1, None)
        assert set(late.update) == FACTORS - rig.private | HEAD
        assert late.memory is not None
        torch.testing.assert_close(late.memory["difficulty"], rig.memories[1]["difficulty"])
        early = rig.job(1, rig.memories[1])
        assert early.update.encode() == late.update.encode()

    @pytest.mark.parametrize("change", ["federation", "examples", "layers", "shapes", "rows"])
    def test_one_that_does_not_fit_is_made_anew(self, change: str) -> None:
        rig = FederationRig()
        for number in (1, 1):
            rig.round(number)
        memory = rig.memories[1]
        tensors, facts = dict(memory), dict(memory.facts)
        if change == "federation":
            facts["federation_seed"] = 99
        elif change == "layers":
            facts["layers"] = [0]
        elif change == "examples":
            tensors["difficulty"] = tensors["difficulty"][:-1]
        elif change == "rows":
            name = min(rig.private) + "/rows"
            tensors[name] = tensors[name][:-1]
        else:
            name = min(rig.private) + "/private"
            tensors[name] = tensors[name][:, :1]
        result = rig.job(1, Payload(tensors, facts), 2)
        fresh = rig.job(1, rig.memories[1] if change == "examples" else None, 2)
        assert result.memory is not None
        assert fresh.memory is not None
        assert result.memory.encode() == fresh.memory.encode()

    def test_without_a_curriculum_nothing_is_scored(self) -> None:
        result = FederationRig(pacing="none").job(1)
        assert result.memory is not None
        assert list(result.memory) == []


class TestCurriculum:
    def test_only_the_easiest_are_seen_and_how_many_is_told(self) -> None:
        rig = FederationRig(pacing_start=0.01, pacing_share=1.0, pacing="exponential")
        rig.round()
        session = FEDERATION.open(2, 7)
        examples: set[int] = set()
        batches = session.batches
        session.batches = lambda order, size: (examples.update(order), batches(order, size))[1]  # type: ignore[method-assign,assignment]
        hard = rig.memories[2]["difficulty"]
        result = rig.client.run(rig.instruction(), session, rig.memories[2])
        assert result.metrics["admitted_share"] == pytest.approx(4 / 13)
        assert result.metrics["examples_seen"] == 4
        easiest = set(torch.argsort(hard, stable=True)[:4].tolist())
        assert easiest <= examples

    @pytest.mark.parametrize("ordinal", [0, 1])
    def test_fewer_examples_than_a_batch_and_one_label_alone_are_trained_on(self, ordinal: int) -> None:
        settings = make_config("fibecfed", QUICK | {"batch_size": 64, "layer_count": "spectrum", "lanczos_steps": 4})
        session = TinyFederation(trainable=LORA, examples=3).open(ordinal, 0)
        session._data = session._data[0], torch.zeros_like(session._data[1])
        server, client = server_half("fibecfed", settings, LORA), client_half("fibecfed", settings, LORA)
        state = server.start(session.facts, 0, None)
        facts = [ClientFacts(ordinal, "one", 3, {}, {}, None, 0)]
        result = client.run(server.plan(state, facts, RoundFacts(1, "prepare", 2, 1))[ordinal], session, None)
        update = ClientUpdate(ordinal, 3, result.weight, result.update, result.metrics, None)
        state = server.aggregate(state, [update], RoundFacts(1, "prepare", 2, 1)).state
        instruction = server.plan(state, facts, RoundFacts(1, "train", 2, 1))[ordinal]
        assert client.run(instruction, session, result.memory).metrics["examples_seen"] == 3


class TestServer:
    def test_the_layers_with_the_largest_weighted_scores_are_chosen(self) -> None:
        rig = FederationRig(layer_share=0.3)
        scores = {0: [1.0, 0.0, 5.0], 1: [0.0, 4.0, 0.0]}
        updates = [
            ClientUpdate(ordinal, 10, weight, Payload({"layer_scores": torch.tensor(values)}), {}, None)
            for (ordinal, values), weight in zip(scores.items(), (1.0, 3.0), strict=True)
        ]
        outcome = rig.server.aggregate(rig.state, updates, RoundFacts(1, "prepare", 5, 3))
        assert outcome.state.facts["layers"] == [1]
        assert outcome.state["layer_scores/mean"].tolist() == [0.25, 3.0, 1.25]

    @pytest.mark.parametrize(
        ("name", "value"),
        [("layer_scores", torch.ones(2)), ("layer_scores", -torch.ones(3)), ("kept_share", torch.tensor([1.5]))],
    )
    def test_scores_of_other_layers_or_out_of_range_are_refused(self, name: str, value: torch.Tensor) -> None:
        rig = FederationRig(layer_count="spectrum", lanczos_steps=4)
        scores = {"layer_scores": torch.ones(3), "kept_share": torch.tensor([0.5])}
        rig.server.check(rig.instruction(), Payload(scores))
        with pytest.raises(UpdateRefused) as error:
            rig.server.check(rig.instruction(), Payload(scores | {name: value}))
        assert error.value.tensor == name

    def test_trained_biases_are_refused(self) -> None:
        with pytest.raises(ValueError, match="bias must be 'none'"):
            make_config("fibecfed", {}).check_trainable(Lora(bias="all"))
