"""Tests of FedKSeed's client half on a tiny model."""

from typing import Any

import pytest
import torch

from federated.contract import AnyTrainable, ClientFacts, ClientResult, ClientUpdate, JobDeclined, RoundFacts
from federated.payloads.payload import Payload
from federated.registry import client_half, make_config, server_half
from federated.trainable import Full, Lora
from tests.support.tiny_session import TinyFederation, TinySession

FULL = Full()
SETTINGS: dict[str, Any] = {"local_steps": 6, "batch_size": 4, "candidates": 128, "learning_rate": 0.01}
STEP = RoundFacts(1, "train", 5, 1)
CLIENT = ClientFacts(1, "one", 12, {}, {}, None, 0)


def state_after(rounds: int, trainable: AnyTrainable, **changes: Any) -> Payload:
    """The state after rounds of made-up scalars."""
    config = make_config("fedkseed", SETTINGS | changes)
    server = server_half("fedkseed", config, trainable)
    state = server.start(TinyFederation(trainable=trainable).open(1, 0).facts, 0, None)
    sums = torch.linspace(-0.01, 0.01, 128, dtype=torch.float64) * rounds
    return Payload({**state, "accumulators": sums}, state.facts)


def instruction_of(state: Payload, trainable: AnyTrainable, **changes: Any) -> Payload:
    config = make_config("fedkseed", SETTINGS | changes)
    instruction = server_half("fedkseed", config, trainable).plan(state, [CLIENT], STEP)[1]
    return Payload.decode(instruction.encode())


def ran(
    trainable: AnyTrainable = FULL, rounds: int = 1, job_seed: int = 5, **changes: Any
) -> tuple[Payload, TinySession, ClientResult]:
    """Instruction, session after the run, and result."""
    state = state_after(rounds, trainable, **changes)
    instruction = instruction_of(state, trainable, **changes)
    session = TinyFederation(trainable=trainable).open(1, job_seed)
    config = make_config("fedkseed", SETTINGS | changes)
    result = client_half("fedkseed", config, trainable).run(instruction, session, None)
    server_half("fedkseed", config, trainable).check(instruction, result.update)
    return instruction, session, result


class TestRun:
    @pytest.mark.parametrize("kind", ["hadamard", "rademacher", "gaussian"])
    def test_what_is_recorded_is_what_was_done_to_the_model(self, kind: str) -> None:
        settings: dict[str, Any] = {"directions": kind, "weighting": "equal"}
        _, session, result = ran(**settings)
        config = make_config("fedkseed", SETTINGS | settings)
        server = server_half("fedkseed", config, FULL)
        state = state_after(1, FULL, **settings)
        update = ClientUpdate(1, 12, 12.0, result.update, {}, None)
        after = server.aggregate(state, [update], STEP).state
        rebuilt = TinyFederation(trainable=FULL).open(1, 0)
        client_half("fedkseed", config, FULL).apply(instruction_of(after, FULL, **settings), rebuilt, None, "shared")
        for name, value in session.read().items():
            torch.testing.assert_close(rebuilt.read()[name], value, rtol=0, atol=2e-6)

    def test_it_answers_a_pair_for_each_step_and_its_examples_as_weight(self) -> None:
        _, session, result = ran()
        assert result.update["seeds"].shape == result.update["scalars"].shape == (6,)
        assert result.weight == session.examples == 12
        assert result.memory is None
        assert result.metrics["steps"] == 6
        assert session.reports[-1] == (6, 6)

    def test_every_forward_pass_is_of_a_full_batch_in_evaluation_mode(self) -> None:
        _, session, _ = ran(local_steps=7, batch_size=5)
        assert session.forward_examples == [5] * 14
        assert not session.model.training

    def test_the_jobs_seed_chooses_directions_and_examples(self) -> None:
        (_, _, one), (_, _, same), (_, _, other) = ran(job_seed=5), ran(job_seed=5), ran(job_seed=6)
        assert one.update.encode() == same.update.encode() != other.update.encode()

    def test_the_global_generator_is_left_alone(self) -> None:
        instruction = instruction_of(state_after(1, FULL, variant="pro"), FULL, variant="pro")
        session = TinyFederation(trainable=FULL).open(1, 5)
        before = torch.get_rng_state()
        client_half("fedkseed", make_config("fedkseed", SETTINGS | {"variant": "pro"}), FULL).run(
            instruction, session, None
        )
        assert torch.equal(torch.get_rng_state(), before)

    def test_with_pro_it_walks_along_the_directions_it_is_told(self) -> None:
        state = state_after(1, FULL, variant="pro")
        likely = torch.zeros(128)
        likely[[3, 77]] = 0.5
        instruction = instruction_of(state, FULL, variant="pro")
        instruction = Payload({**instruction, "probabilities": likely}, instruction.facts)
        session = TinyFederation(trainable=FULL).open(1, 5)
        config = make_config("fedkseed", SETTINGS | {"variant": "pro", "local_steps": 40})
        result = client_half("fedkseed", config, FULL).run(instruction, session, None)
        assert set(result.update["seeds"].tolist()) == {3, 77}

    @pytest.mark.parametrize(
        ("perturb", "moved"),
        [
            ("all", {"lora_A", "lora_B", "classifier"}),
            ("lora", {"lora_A", "lora_B"}),
            (["classifier.*"], {"classifier"}),
        ],
    )
    def test_only_what_is_to_be_perturbed_moves(self, perturb: Any, moved: set[str]) -> None:
        lora = Lora(r=2, lora_alpha=4)
        _, session, _ = ran(lora, perturb=perturb)
        changed_names = {
            name for name, value in session.read().items() if not torch.equal(value, session.start(name))
        }
        assert {part for name in changed_names for part in name.split(".")} & {
            "lora_A",
            "lora_B",
            "classifier",
        } == moved


class TestApply:
    def test_no_scalars_give_the_start_bit_for_bit(self) -> None:
        session = TinyFederation(trainable=FULL).open(1, 5)
        begin = {name: value.detach().clone() for name, value in session.trainables.items()}
        instruction = instruction_of(state_after(0, FULL), FULL)
        client_half("fedkseed", make_config("fedkseed", SETTINGS), FULL).apply(instruction, session, None, "shared")
        assert all(torch.equal(session.trainables[name], value) for name, value in begin.items())

    def test_a_late_joiner_has_the_same_model_as_everybody(self) -> None:
        instruction = instruction_of(state_after(3, FULL), FULL)
        models = []
        for ordinal in (1, 2):
            session = TinyFederation(trainable=FULL).open(ordinal, ordinal)
            client_half("fedkseed", make_config("fedkseed", SETTINGS), FULL).apply(
                instruction, session, None, "shared"
            )
            models.append(session.read())
        assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
        assert any(value.any() for value in models[0].values())


class TestRefusal:
    @pytest.mark.parametrize("does", ["run", "apply"])
    def test_a_worker_that_makes_other_directions_declines_with_the_reason(self, does: str) -> None:
        instruction = instruction_of(state_after(1, FULL), FULL).with_facts(directions_digest="sha256:other")
        half = client_half("fedkseed", make_config("fedkseed", SETTINGS), FULL)
        session = TinyFederation(trainable=FULL).open(1, 5)
        begin = session.read()
        with pytest.raises(
            JobDeclined, match=r"the hadamard directions of this worker.*expected sha256:other"
        ) as error:
            half.run(instruction, session, None) if does == "run" else half.apply(
                instruction, session, None, "shared"
            )
        assert error.value.code == "directions_differ"
        assert all(torch.equal(session.read()[name], value) for name, value in begin.items())
