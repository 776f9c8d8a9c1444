"""Tests of FlexLoRA's client half on a tiny model."""

from typing import Any

import pytest
import torch

from federated import simulation
from federated.algorithm_kit.local_training import train
from federated.contract import ClientFacts, ClientResult, GradientConfig, RoundFacts
from federated.payloads.payload import Payload
from federated.registry import client_half, make_config, server_half
from federated.simulation import Result, SimulatedFederation
from federated.trainable import Lora
from tests.support.tiny_session import TinyFederation, TinySession

LORA = Lora(r=4, lora_alpha=4)
SETTINGS: dict[str, Any] = {"local_epochs": 1, "batch_size": 4, "learning_rate": 0.05}
QUERY = "layers.0.query"
A, B = f"{QUERY}.lora_A.weight", f"{QUERY}.lora_B.weight"
STEP = RoundFacts(1, "train", 5, 2)


def instruction_of(
    state: Payload, rank: int, step: RoundFacts = STEP, trainable: Lora = LORA, **changes: Any
) -> Payload:
    server = server_half("flexlora", make_config("flexlora", SETTINGS | changes), trainable)
    client = ClientFacts(1, "one", 12, {}, {"rank": rank}, None, 0)
    return Payload.decode(server.plan(state, [client], step)[1].encode())


def ran(rank: int = 2, trainable: Lora = LORA, **changes: Any) -> tuple[Payload, TinySession, ClientResult]:
    """Instruction, session after the run, and result, of a first round."""
    config = make_config("flexlora", SETTINGS | changes)
    session = TinyFederation(trainable=trainable).open(1, 5)
    state = server_half("flexlora", config, trainable).start(session.facts, 0, None)
    instruction = instruction_of(state, rank, trainable=trainable, **changes)
    return instruction, session, client_half("flexlora", config, trainable).run(instruction, session, None)


def run_federation(rounds: int = 8, **changes: Any) -> Result:
    settings = {0: {"rank": 1}, 1: {"rank": 2}, 2: {"rank": 4}}
    config = make_config("flexlora", SETTINGS | changes)
    federation = SimulatedFederation("flexlora", config, LORA, 3, rounds, settings=settings, evaluate_every=1)
    return simulation.run(federation, TinyFederation(trainable=LORA, settings=settings).open)


def test_the_update_is_the_difference_of_the_plain_loop_at_the_clients_rank() -> None:
    instruction, session, result = ran()
    by_hand = TinyFederation(trainable=LORA).open(1, 5)
    modules = list(instruction.facts["factors"])
    by_hand.resize(dict.fromkeys(modules, 2), dict.fromkeys(modules, 4 / 2**0.5))
    by_hand.load({name: instruction[name] for name in by_hand.trainables})
    metrics = train(by_hand, GradientConfig(**SETTINGS))
    assert all(torch.equal(result.update[name], by_hand.read()[name] - instruction[name]) for name in result.update)
    assert result.update.shape(A) == (2, 8)
    assert result.metrics["loss"] == metrics["loss"]
    assert result.weight == session.examples == 12
    assert result.memory is None


def test_rank_scale_and_norm_are_recorded() -> None:
    _, _, result = ran(3)
    flat = torch.cat([result.update[name].flatten() for name in result.update])
    assert result.metrics["update_norm"] == pytest.approx(flat.norm().item(), rel=1e-6)
    assert result.metrics["rank"] == 3.0
    assert result.metrics["scale"] == pytest.approx(4 / 3**0.5)


def test_an_upload_in_bfloat16_is_the_rounded_difference() -> None:
    (_, _, wide), (_, _, narrow) = ran(), ran(upload_dtype="bfloat16")
    assert all(torch.equal(narrow.update[name], wide.update[name].bfloat16()) for name in wide.update)


def test_a_trained_bias_travels_as_a_difference_and_tells_its_base_once_asked() -> None:
    _, _, result = ran(trainable=Lora(r=4, bias="lora_only"))
    fresh = TinyFederation(trainable=Lora(r=4, bias="lora_only")).open(1, 5)
    assert torch.equal(result.update[f"{QUERY}.bias/base"], fresh.trainables[f"{QUERY}.bias"].detach())


class TestStacking:
    """Ranks learned in earlier rounds stand beside the client's own."""

    def second_round(self) -> tuple[Payload, TinySession, ClientResult]:
        config = make_config("flexlora", SETTINGS | {"aggregation": "stack"})
        server = server_half("flexlora", config, LORA)
        result = run_federation(1, aggregation="stack")
        session = TinyFederation(trainable=LORA).open(1, 5)
        instruction = instruction_of(result.state, 2, RoundFacts(2, "train", 5, 2), aggregation="stack")
        result = client_half("flexlora", config, LORA).run(instruction, session, None)
        server.check(instruction, result.update)
        return instruction, session, result

    def test_what_was_learned_keeps_its_bits(self) -> None:
        instruction, session, _ = self.second_round()
        before = instruction[f"{A}/learned"]
        assert len(before) == 7
        assert session.trainables[A].shape == (9, 8)
        assert torch.equal(session.trainables[A][:7], before)
        learned_b = instruction[f"{B}/learned"] / instruction.facts["scales"][QUERY]
        assert torch.equal(session.trainables[B][:, :7], learned_b)

    def test_the_update_is_the_clients_own_part(self) -> None:
        instruction, session, result = self.second_round()
        assert result.update.shape(A) == (2, 8)
        assert torch.equal(result.update[A], session.trainables[A].detach()[7:] - instruction[A])
        assert result.update[B].any()

    def test_what_was_learned_does_not_count_in_the_clipped_gradient(self) -> None:
        """With a bound that always clips, one step of SGD moves the own part and the head by exactly that norm."""
        changes = {"aggregation": "stack", "optimizer": "sgd", "local_steps": 1, "max_grad_norm": 1e-3}
        config = make_config("flexlora", SETTINGS | changes)
        state = run_federation(1, aggregation="stack").state
        instruction = instruction_of(state, 2, RoundFacts(2, "train", 5, 2), **changes)
        result = client_half("flexlora", config, LORA).run(
            instruction, TinyFederation(trainable=LORA).open(1, 5), None
        )
        # The rate 0.05 times the bound; differences of float32 values of about 0.3 are good to a few of 1e-8.
        assert result.metrics["update_norm"] == pytest.approx(0.05 * 1e-3, rel=2e-2)


@pytest.mark.parametrize("rule", ["delta", "product", "rank_aware", "zero_pad", "stack"])
def test_a_federation_of_mixed_ranks_learns_by_every_rule(rule: str) -> None:
    losses = [record.metrics["loss"] for record in run_federation(aggregation=rule).rounds]
    assert losses[-1] < 0.95 * losses[0]


def test_a_client_of_a_lower_rank_moves_fewer_bytes() -> None:
    sizes = [len(ran(rank)[2].update.encode()) for rank in (1, 2, 4)]
    assert sizes == sorted(set(sizes))
