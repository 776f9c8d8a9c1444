"""Tests of FedAvg's client half on a tiny model."""

from typing import Any

import pytest
import torch

from federated.algorithm_kit.local_training import train
from federated.contract import ClientFacts, ClientResult, GradientConfig, RoundFacts
from federated.payloads.payload import Payload
from federated.registry import client_half, make_config, server_half
from federated.trainable import Lora
from tests.support.tiny_session import TinyFederation, TinySession

LORA = Lora(r=2, lora_alpha=4)
SETTINGS: dict[str, Any] = {"local_epochs": 1, "batch_size": 4, "learning_rate": 0.05}
STEP = RoundFacts(1, "train", 5, 1)


def ran(
    initial: Payload | None = None, trainable: Lora = LORA, **changes: Any
) -> tuple[Payload, TinySession, ClientResult]:
    """Instruction, session after the run, and result, of the first round."""
    config = make_config("fedavg", SETTINGS | changes)
    session = TinyFederation(trainable=trainable).open(1, 5)
    server = server_half("fedavg", config, trainable)
    state = server.start(session.facts, 0, initial)
    instruction = server.plan(state, [ClientFacts(1, "one", 12, {}, {}, None, 0)], STEP)[1]
    instruction = Payload.decode(instruction.encode())
    result = client_half("fedavg", config, trainable).run(instruction, session, None)
    server.check(instruction, result.update)
    return instruction, session, result


def test_the_update_is_the_difference_of_the_plain_loop() -> None:
    instruction, session, result = ran()
    by_hand = TinyFederation(trainable=LORA).open(1, 5)
    metrics = train(by_hand, GradientConfig(**SETTINGS))
    assert all(torch.equal(result.update[name], by_hand.read()[name] - instruction[name]) for name in instruction)
    assert result.weight == session.examples == 12
    assert result.metrics["loss"] == metrics["loss"]
    assert result.memory is None


def test_the_update_norm_is_that_over_all_tensors() -> None:
    _, _, result = ran()
    flat = torch.cat([result.update[name].flatten() for name in result.update])
    assert result.metrics["update_norm"] == pytest.approx(flat.norm().item(), rel=1e-6)


def test_training_starts_from_the_received_values_and_not_from_the_seeded_ones() -> None:
    initial = {"classifier.bias": torch.tensor([1.0, -1.0, 0.0])}
    instruction, session, result = ran(initial=Payload(initial))
    torch.testing.assert_close(
        session.read()["classifier.bias"], initial["classifier.bias"] + result.update["classifier.bias"]
    )
    assert torch.equal(instruction["classifier.bias"], initial["classifier.bias"])


def test_an_upload_in_bfloat16_is_the_rounded_difference() -> None:
    (_, _, wide), (_, _, narrow) = ran(), ran(upload_dtype="bfloat16")
    assert all(torch.equal(narrow.update[name], wide.update[name].bfloat16()) for name in wide.update)


def test_frozen_factors_are_neither_trained_nor_sent() -> None:
    _, session, result = ran(freeze_a=True)
    factors_a = [name for name in session.trainables if ".lora_A." in name]
    assert len(factors_a) == 3
    assert not set(factors_a) & set(result.update)
    assert all(torch.equal(session.read()[name], session.start(name)) for name in factors_a)
    assert all(result.update[name].any() for name in result.update)


def test_frozen_factors_of_an_initial_adapter_are_the_clients_too() -> None:
    name = "layers.0.query.lora_A.weight"
    _, session, _ = ran(initial=Payload({name: torch.full((2, 8), 0.25)}), freeze_a=True)
    assert torch.equal(session.read()[name], torch.full((2, 8), 0.25))


def test_the_proximal_term_pulls_toward_the_received_values() -> None:
    # One SGD step from w after one from w0: the pull adds -rate * mu * (w - w0).
    sgd = {"optimizer": "sgd", "local_steps": 2, "batch_size": 12, "max_grad_norm": None}
    (_, _, one_step) = ran(**(sgd | {"local_steps": 1}))
    (_, _, plain), (_, _, proximal) = ran(**sgd), ran(**sgd, proximal_mu=2.0)
    for name in plain.update:
        reference = plain.update[name] - 0.05 * 2.0 * one_step.update[name]
        torch.testing.assert_close(proximal.update[name], reference, rtol=1e-4, atol=1e-6)


def test_a_trained_bias_travels_as_a_difference_and_tells_its_base_once_asked() -> None:
    _, session, result = ran(trainable=Lora(r=2, bias="lora_only"))
    name = "layers.0.query.bias"
    base = result.update[f"{name}/base"]
    fresh = TinyFederation(trainable=Lora(r=2, bias="lora_only")).open(1, 5)
    assert torch.equal(base, fresh.trainables[name].detach())
    torch.testing.assert_close(session.trainables[name].detach(), base + result.update[name])


def test_applying_an_instruction_puts_the_model_into_its_state() -> None:
    config = make_config("fedavg", SETTINGS)
    instruction, _, _ = ran(initial=Payload({"classifier.bias": torch.tensor([1.0, -1.0, 0.0])}))
    session = TinyFederation(trainable=LORA).open(1, 5)
    client_half("fedavg", config, LORA).apply(instruction, session, None, "shared")
    assert all(torch.equal(session.read()[name], instruction[name]) for name in instruction)
