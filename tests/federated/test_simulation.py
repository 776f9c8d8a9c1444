"""Simulation of a whole federation in one process."""

from typing import Any

import pytest
import torch

from federated import schedule, simulation
from federated.contract import ClientUpdate
from federated.payloads.payload import Payload
from federated.registry import make_config
from federated.simulation import Result, SimulatedFederation, mean_metrics
from federated.trainable import Full, Lora
from tests.support import rounds_by_hand
from tests.support.rounds_by_hand import Sample
from tests.support.tiny_session import TinyFederation

LORA = Lora(r=2, lora_alpha=4)
CONFIG = make_config("fedavg", {"local_epochs": 2, "batch_size": 4, "learning_rate": 0.03})


def ran(trainable: Any = LORA, sessions: TinyFederation | None = None, **changes: Any) -> Result:
    given: dict[str, Any] = {"clients": 3, "rounds": 2} | changes
    opened = sessions or TinyFederation(trainable=trainable, seed=given.get("seed", 0))
    return simulation.run(SimulatedFederation("fedavg", CONFIG, trainable, **given), opened.open)


class TestRun:
    def test_a_federation_learns(self) -> None:
        result = ran(rounds=5, evaluate_every=1)
        losses = [record.metrics["loss"] for record in result.rounds]
        assert result.reason == "rounds"
        assert [record.number for record in result.rounds] == [1, 2, 3, 4, 5]
        assert losses[-1] < losses[0]
        assert result.rounds[-1].metrics["examples"] == 27.0

    def test_twice_the_same_federation_ends_with_the_same_bytes(self) -> None:
        torch.manual_seed(1)
        one = ran(clients_per_round=2)
        torch.manual_seed(2)
        other = ran(clients_per_round=2)
        assert one.state.encode() == other.state.encode()
        assert one.rounds == other.rounds

    def test_another_seed_ends_elsewhere(self) -> None:
        assert ran(seed=1).state.encode() != ran(seed=2).state.encode()

    def test_dropout_is_drawn_by_the_jobs_seed_and_the_global_generator_stays(self) -> None:
        dropping = Lora(r=2, lora_alpha=4, lora_dropout=0.5)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        one = ran(dropping)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert ran(dropping).state.encode() == one.state.encode()
        assert one.state.encode() != ran().state.encode()

    def test_a_round_is_what_its_parts_are(self) -> None:
        sample = Sample("fedavg", CONFIG, LORA)
        state = rounds_by_hand.first_state(sample)
        told = rounds_by_hand.instructions(sample, state)
        outcome = sample.server.aggregate(state, _updates(sample, told), rounds_by_hand.step_of(state, sample))
        result = ran(rounds=1, sessions=sample.federation)
        assert result.state.encode() == outcome.state.encode()
        assert result.rounds[0].metrics == outcome.metrics
        assert result.rounds[0].download_bytes == sum(len(instruction.encode()) for instruction in told.values())

    def test_the_cohorts_are_those_of_the_schedule(self) -> None:
        result = ran(clients=5, clients_per_round=2, rounds=3)
        drawn = [schedule.draw(0, "train", number, 1, range(5), (), (), 2) for number in (1, 2, 3)]
        assert [record.cohort for record in result.rounds] == drawn

    def test_evaluation_follows_every_n_rounds_and_the_last(self) -> None:
        result = ran(rounds=3, evaluate_every=2)
        assert ["accuracy" in record.metrics for record in result.rounds] == [False, True, True]

    def test_a_target_ends_it_early(self) -> None:
        result = ran(rounds=9, evaluate_every=1, stop_metric="loss", stop_target=1e6)
        assert (result.reason, len(result.rounds)) == ("target", 1)

    def test_an_earlier_adapter_is_where_it_begins(self) -> None:
        first = ran(rounds=2)
        barely = make_config("fedavg", {"local_steps": 1, "learning_rate": 1e-12, "batch_size": 1})
        resumed = simulation.run(
            SimulatedFederation(
                "fedavg", barely, LORA, 1, 1, initial=Payload(first.adapter.tensors),
            ),
            TinyFederation(trainable=LORA).open,
        )  # fmt: skip
        for name, value in first.adapter.tensors.items():
            torch.testing.assert_close(resumed.adapter.tensors[name], value, rtol=0, atol=1e-6)

    def test_a_trainable_that_the_algorithm_does_not_admit_is_refused(self) -> None:
        with pytest.raises(ValueError, match="does not train 'full'"):
            ran(Full())

    def test_the_server_is_told_what_each_clients_worker_can(self) -> None:
        config = make_config("flexlora", {"local_steps": 1, "batch_size": 4})
        given = SimulatedFederation("flexlora", config, Lora(r=4), 2, 1, capabilities={1: {"max_rank": 3}})
        (record,) = simulation.run(given, TinyFederation(trainable=Lora(r=4)).open).rounds
        assert (record.metrics["rank_min"], record.metrics["rank_max"]) == (3.0, 4.0)

    def test_settings_that_the_config_does_not_know_are_refused(self) -> None:
        with pytest.raises(ValueError, match="unknown client setting 'rank'"):
            ran(settings={2: {"rank": 4}})


def _updates(sample: Sample, told: dict[int, Payload]) -> list[Any]:
    updates = []
    for ordinal, instruction in told.items():
        opened = sample.federation.open(ordinal, schedule.job_seed(0, "train", 1, ordinal, "train"))
        result = sample.client.run(instruction, opened, None)
        updates.append(ClientUpdate(ordinal, opened.examples, result.weight, result.update, result.metrics, None))
    return updates


class TestMeanMetrics:
    def test_each_metric_is_the_mean_by_examples_of_those_who_told_it(self) -> None:
        told = [{"examples": 1.0, "loss": 1.0}, {"examples": 3.0, "loss": 2.0, "f1": 0.5}]
        assert mean_metrics(told) == {"loss": 1.75, "f1": 0.5, "examples": 4.0}
