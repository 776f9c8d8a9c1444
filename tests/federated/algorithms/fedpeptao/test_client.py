"""Tests of FedPepTAO's client half on a tiny model: updates, private layers, and memories."""

from typing import Any

import pytest
import torch

from federated.contract import ClientFacts, ClientResult, ClientUpdate, JobDeclined, RoundFacts
from federated.payloads.payload import Payload
from federated.registry import client_half, make_config, server_half
from federated.trainable import Prefix
from tests.support.fused import Once
from tests.support.messages import data_bytes
from tests.support.tiny_model import LAYERS
from tests.support.tiny_session import TinyFederation, TinySession

PREFIX = Prefix(num_virtual_tokens=2)
SETTINGS: dict[str, Any] = {"local_steps": 2, "batch_size": 4, "learning_rate": 0.05, "layer_share": 0.3}
FEDERATION = TinyFederation(trainable=PREFIX, seed=3)
CLIENT = ClientFacts(0, "", 12, {}, {}, None, 0)
MIDDLE = Payload({"layer_scores": torch.tensor([1.0, 2.0, 0.0])})


def instruction_of(initial: Payload | None = None, **changes: Any) -> Payload:
    """Of the first train round, where the middle layer travels."""
    server = server_half("fedpeptao", make_config("fedpeptao", SETTINGS | changes), PREFIX)
    state = server.start(FEDERATION.open(0, 0).facts, 3, initial)
    update = ClientUpdate(0, 12, 12.0, MIDDLE, {}, None)
    state = server.aggregate(state, [update], RoundFacts(1, "prepare", 5, 1)).state
    instruction = server.plan(state, [CLIENT], RoundFacts(1, "train", 5, 1))[0]
    return Payload.decode(instruction.encode())


def half(**changes: Any) -> Any:
    return client_half("fedpeptao", make_config("fedpeptao", SETTINGS | changes), PREFIX)


def ran(
    memory: Payload | None = None, initial: Payload | None = None, **changes: Any
) -> tuple[TinySession, ClientResult]:
    session = FEDERATION.open(0, 7)
    return session, half(**changes).run(instruction_of(initial, **changes), session, memory)


def layers_of(session: TinySession) -> list[torch.Tensor]:
    return list(session.read()["prompt_embeddings"].chunk(LAYERS, dim=1))


class TestPrivateLayers:
    def test_they_are_trained_and_remembered_and_not_sent(self) -> None:
        session, result = ran()
        assert list(result.update) == ["classifier.bias", "classifier.weight", "prompt_embeddings/layer.1"]
        assert result.memory is not None
        assert list(result.memory) == ["prompt_embeddings/layer.0", "prompt_embeddings/layer.2"]
        starts = FEDERATION.open(0, 0)
        for layer in (0, 2):
            tensor = result.memory[f"prompt_embeddings/layer.{layer}"]
            assert torch.equal(tensor, layers_of(session)[layer])
            assert not torch.equal(tensor, layers_of(starts)[layer])

    @pytest.mark.parametrize(("share", "layers"), [(0.3, 1), (0.6, 2), (1.0, 3)])
    def test_a_message_has_the_bytes_of_the_chosen_layers_and_the_head(self, share: float, layers: int) -> None:
        """A layer has two virtual tokens of a key and a value of eight: 32 numbers; the head has 27."""
        reference = (layers * 32 + 27) * 4
        assert data_bytes(instruction_of(layer_share=share)) == reference
        assert data_bytes(ran(layer_share=share)[1].update) == reference

    def test_the_next_round_goes_on_from_them(self) -> None:
        memory = ran()[1].memory
        going_on, _ = ran(memory, learning_rate=1e-12)
        assert memory is not None
        torch.testing.assert_close(layers_of(going_on)[0], memory["prompt_embeddings/layer.0"], rtol=0, atol=1e-9)

    def test_only_the_own_view_has_them(self) -> None:
        memory = ran()[1].memory
        assert memory is not None
        starts = layers_of(FEDERATION.open(0, 0))
        for view, reference in (("own", memory["prompt_embeddings/layer.2"]), ("shared", starts[2])):
            session = FEDERATION.open(0, 7)
            half().apply(instruction_of(), session, memory, view)
            assert torch.equal(layers_of(session)[2], reference)

    @pytest.mark.parametrize("fact", [{"federation_seed": 4}, {"travelling": [0]}, {"prompts": [2, 96]}])
    def test_a_memory_of_another_federation_is_as_none(self, fact: dict[str, Any]) -> None:
        memory = ran()[1].memory
        assert memory is not None
        foreign = Payload(dict(memory), {**memory.facts, **fact})
        assert ran(foreign)[1].update.encode() == ran()[1].update.encode()
        assert ran(memory)[1].update.encode() != ran()[1].update.encode()

    def test_an_initial_adapter_is_the_common_start_of_the_layers_that_do_not_travel(self) -> None:
        initial = Payload({"prompt_embeddings": torch.full((2, 48), 0.25)})
        instruction = instruction_of(initial)
        assert list(instruction)[2:] == [
            "prompt_embeddings/layer.0/frozen", "prompt_embeddings/layer.1", "prompt_embeddings/layer.2/frozen",
        ]  # fmt: skip
        session = FEDERATION.open(0, 7)
        half().apply(instruction, session, None, "shared")
        assert torch.equal(session.read()["prompt_embeddings"], initial["prompt_embeddings"])


class TestMaskedLayers:
    def test_they_are_as_a_model_whose_layers_have_no_prompt(self) -> None:
        session, other = FEDERATION.open(0, 7), FEDERATION.open(0, 7)
        half(other_layers="masked").apply(instruction_of(other_layers="masked"), session, None, "shared")
        half().apply(instruction_of(), other, None, "shared")
        model: Any = other.model
        tokens = torch.arange(6).reshape(1, 6)
        with torch.no_grad():
            without_prompt, plain = session.model(tokens), other.model(tokens)
            hidden = model.embeddings(tokens)
            for index, layer in enumerate(model.layers):
                hidden = layer(hidden, model.prompt_embeddings[:, 16:24] if index == 1 else None)
            by_hand = model.classifier(hidden.mean(dim=1))
        assert torch.equal(without_prompt, by_hand)
        assert not torch.equal(without_prompt, plain)

    def test_nothing_of_them_is_remembered(self) -> None:
        assert ran(other_layers="masked")[1].memory is None

    def test_no_federation_of_the_service_may_ask_for_them(self) -> None:
        make_config("fedpeptao", {}).check_served()
        with pytest.raises(ValueError, match="'masked' is for simulations"):
            make_config("fedpeptao", {"other_layers": "masked"}).check_served()


class TestMoments:
    def test_they_begin_anew_each_round_unless_they_persist(self) -> None:
        for mode, same in (("reset", True), ("persist", False)):
            memory = ran(moments=mode)[1].memory
            assert memory is not None
            prompts = Payload({n: memory[n] for n in memory if not n.startswith("moments/")}, memory.facts)
            one, other = (ran(tensor, moments=mode)[1].update.encode() for tensor in (memory, prompts))
            assert (one == other) == same

    def test_persisting_over_two_rounds_is_one_run_of_all_steps(self) -> None:
        # With the same example at every step, and nothing between the rounds, two and two steps are four.
        alone = TinyFederation(trainable=PREFIX, seed=3, examples=1)
        settings = {"moments": "persist", "batch_size": 1}
        instruction = instruction_of(**settings)
        whole = alone.open(0, 7)
        half(**settings, local_steps=4).run(instruction, whole, None)
        session = alone.open(0, 7)
        first = half(**settings).run(instruction, session, None)
        moved_state = Payload(
            {name: instruction[name] + first.update[name] for name in first.update}, instruction.facts
        )
        again = alone.open(0, 7)
        half(**settings).run(moved_state, again, first.memory)
        for name, value in whole.read().items():
            torch.testing.assert_close(again.read()[name], value, rtol=0, atol=1e-6)


def test_a_session_without_the_layers_of_its_facts_is_refused_by_name() -> None:
    session = FEDERATION.open(0, 7)
    session.facts = session.facts.model_copy(update={"layers": 4})
    server = server_half("fedpeptao", make_config("fedpeptao", SETTINGS), PREFIX)
    instruction = server.plan(
        server.start(FEDERATION.open(0, 0).facts, 3, None), [CLIENT], RoundFacts(1, "prepare", 5, 1)
    )[0]
    with pytest.raises(JobDeclined, match=r"layers_unknown: .*4 are expected; lists of modules are: layers \(3\)"):
        half().run(instruction, session, None)


def test_a_loss_that_cannot_be_differentiated_twice_is_declined() -> None:
    session = FEDERATION.open(0, 7)
    session.layers()[1].register_forward_hook(lambda *arguments: Once.apply(arguments[2]))
    changes = {"layer_count": "spectrum", "warmup_rounds": 0}
    server = server_half("fedpeptao", make_config("fedpeptao", SETTINGS | changes), PREFIX)
    state = server.start(FEDERATION.open(0, 0).facts, 3, None)
    instruction = server.plan(state, [CLIENT], RoundFacts(1, "prepare", 5, 1))[0]
    with pytest.raises(JobDeclined, match=r"second_derivative_missing.*layer_count 'fixed'"):
        half(**changes).run(instruction, session, None)


@pytest.mark.parametrize("way", ["fixed", "spectrum"])
def test_fewer_examples_than_a_batch_and_one_label_alone_are_measured_and_trained_on(way: str) -> None:
    changes = {"layer_count": way, "warmup_rounds": 0, "batch_size": 64, "local_steps": None, "local_epochs": 1.0}
    server = server_half("fedpeptao", make_config("fedpeptao", SETTINGS | changes), PREFIX)
    session = TinyFederation(trainable=PREFIX, seed=3, examples=3).open(0, 7)
    session._data = session._data[0], torch.zeros_like(session._data[1])
    state = server.start(session.facts, 3, None)
    instruction = server.plan(state, [CLIENT], RoundFacts(1, "prepare", 5, 1))[0]
    result = half(**changes).run(instruction, session, None)
    server.check(instruction, result.update)
    update = ClientUpdate(0, 3, result.weight, result.update, result.metrics, None)
    state = server.aggregate(state, [update], RoundFacts(1, "prepare", 5, 1)).state
    instruction = server.plan(state, [CLIENT], RoundFacts(1, "train", 5, 1))[0]
    result = half(**changes).run(instruction, session, None)
    server.check(instruction, result.update)
    assert (result.metrics["examples_seen"], result.weight) == (3, 3)
    assert all(result.update[name].isfinite().all() for name in result.update)


@pytest.mark.parametrize("way", ["spectrum", "eigengap"])
def test_the_hessians_share_is_measured_where_the_instruction_points(way: str) -> None:
    changes = {"layer_count": way, "warmup_rounds": 0}
    server = server_half("fedpeptao", make_config("fedpeptao", SETTINGS | changes), PREFIX)
    state = server.start(FEDERATION.open(0, 0).facts, 3, None)
    instruction = server.plan(state, [CLIENT], RoundFacts(1, "prepare", 5, 1))[0]
    result = half(**changes).run(instruction, FEDERATION.open(0, 7), None)
    server.check(instruction, result.update)
    plateau, gap = result.update["shares"].tolist()
    assert 0 <= plateau <= 1
    assert 0 <= gap <= 1
    update = ClientUpdate(0, 12, 12.0, result.update, {}, None)
    outcome = server.aggregate(state, [update], RoundFacts(1, "prepare", 5, 1))
    count = {"spectrum": plateau, "eigengap": gap}[way] * LAYERS
    assert outcome.metrics["layers_travelling"] == max(1, min(LAYERS - 1, round(count)))
    assert outcome.metrics["spectrum_share"] == pytest.approx(plateau)
    assert outcome.metrics["eigengap_share"] == pytest.approx(gap)
