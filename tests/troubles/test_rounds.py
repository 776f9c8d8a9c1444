"""Troubles with clients and rounds that no test of the code says already: each is right, or refused by name.

The row of the log is in each test's name.
"""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from federated import simulation
from federated.registry import make_config
from federated.simulation import SimulatedFederation
from federated.trainable import Lora
from tests.support.algorithms import installed
from tests.support.federation_rig import CAPABILITIES, DATASET, A, Actor, FederationRig, update_of
from tests.support.service import Service, problem
from tests.support.tiny_session import TinyFederation


@pytest.fixture
def rig(service: Service) -> FederationRig:
    return FederationRig(service)


@pytest.fixture
def phased() -> Iterator[None]:
    """An algorithm that prepares."""
    with installed():
        yield


def described(rig: FederationRig, actors: list[Actor]) -> list[Actor]:
    """Starts, and lets all of them describe what they have."""
    rig.post("start")
    for actor in actors:
        assert actor.work() == "describe"
    rig.settle()
    return actors


def reconcile_until(rig: FederationRig, rounds: int) -> None:
    """Waits until there are so many rounds."""
    ends = time.monotonic() + 30
    while len(rig.rounds()) < rounds:
        assert time.monotonic() < ends
        time.sleep(0.05)
        rig.reconcile()


def test_c04_after_the_wait_a_round_goes_on_with_those_who_are_there(rig: FederationRig) -> None:
    rig.create(rounds=1, clients_per_round=3, min_clients=2, wait_for_clients_seconds=1.0)
    first, second = described(rig, [rig.join(rig.actor()) for _ in range(2)])
    ends = time.monotonic() + 30
    while rig.rounds()[0]["state"] != "collecting" and time.monotonic() < ends:
        time.sleep(0.05)
        rig.reconcile()
    assert [first.work(), second.work()] == ["train", "train"]
    rig.settle()
    assert (rig.show()["state"], rig.get("rounds", "1")["accepted"]) == ("completed", [0, 1])


def test_c05_a_result_that_comes_late_is_refused_and_its_client_takes_part_again(rig: FederationRig) -> None:
    first, second = rig.running(rounds=2, min_clients=1, round_deadline_seconds=1.5)
    second.make_update = lambda instruction: update_of(100.0, instruction)
    asleep = second.lease()
    assert asleep is not None
    assert first.work() == "train"
    reconcile_until(rig, 2)
    problem(second.submit(asleep), 409, "round_closed")
    closed, opened = rig.rounds()
    assert (closed["accepted"], closed["late_updates"], opened["cohort"]) == ([0], 1, [0, 1])
    assert second.work() == "train"
    rig.settle()
    assert rig.get("rounds", "1")["accepted"] == [0]


@pytest.mark.usefixtures("phased")
def test_c07_a_preparation_that_is_paused_at_once_is_made_after_the_pause(rig: FederationRig) -> None:
    able = CAPABILITIES.model_copy(update={"algorithms": {"phased": 1}})
    rig.create(algorithm="phased", config={}, rounds=1)
    first, second = described(rig, [rig.join(rig.actor(capabilities=able)) for _ in range(2)])
    assert first.work() == "train"
    rig.settle()
    lease = second.lease()
    assert lease is not None
    assert rig.post("pause", now=True)["state"] == "paused"
    problem(second.submit(lease), 409, "round_closed")
    rig.post("resume")
    rig.play(1)
    kinds = [(row["kind"], row["state"]) for row in rig.rounds()]
    assert kinds == [("prepare", "withdrawn"), ("prepare", "closed"), ("train", "closed")]
    assert rig.show()["state"] == "completed"


def test_c09_two_federations_on_the_same_workers_keep_the_same_pace(rig: FederationRig) -> None:
    workers = [rig.actor(), rig.actor()]
    federations = []
    for name in ("one", "other"):
        federations.append(rig.create(name=name, rounds=2))
        for actor in workers:
            rig.join(actor)
        rig.post("start")
    done: list[list[int]] = []
    while not done or sum(done[-1]) < 4:
        worked = [actor.work() for actor in workers]
        assert rig.settle() or any(worked)
        done.append([rig.owner.owner.get(f"/v1/federations/{one}").json()["rounds_done"] for one in federations])
    assert all(abs(one - other) <= 1 for one, other in done)


def test_c09_two_data_sets_of_one_worker_are_two_clients(rig: FederationRig) -> None:
    offered = [{"name": DATASET}, {"name": "letters"}]
    capabilities = type(CAPABILITIES).model_validate(CAPABILITIES.model_dump() | {"datasets": offered})
    rig.create(rounds=2)
    actor = rig.join(rig.actor(capabilities=capabilities))
    rig.join(actor, dataset="letters")
    rig.post("start")
    rig.play(2)
    assert [row["accepted"] for row in rig.rounds()] == [[0, 1], [0, 1]]


def test_x02_an_update_a_million_million_times_too_large_is_refused_by_its_tensor(rig: FederationRig) -> None:
    actors = rig.running(2, rounds=1, min_clients=1)
    actors[1].make_update = lambda instruction: update_of(1e12, instruction)
    rig.play(1)
    assert (rig.show()["state"], rig.get("rounds", "1")["accepted"]) == ("completed", [0])
    (job,) = [job for job in rig.get("rounds", "1", "jobs")["items"] if job["problem"]]
    assert (job["ordinal"], job["problem"]["code"], job["problem"]["tensor"]) == (1, "update_too_large", A)


@pytest.mark.parametrize("optimizer", ["adam", "yogi", "adagrad", "momentum"])
def test_l13_a_server_optimizer_learns_and_stays_finite_for_five_rounds(optimizer: str) -> None:
    trainable = Lora(r=2, lora_alpha=4)
    settings: dict[str, Any] = {"local_epochs": 2, "batch_size": 4, "learning_rate": 0.03}
    settings |= {"server_optimizer": optimizer, "server_learning_rate": 0.3 if optimizer == "momentum" else 0.03}
    config = make_config("fedavg", settings)
    federation = SimulatedFederation("fedavg", config, trainable, clients=3, rounds=5, evaluate_every=1)
    sessions: Any = TinyFederation(trainable=trainable, seed=0)
    result = simulation.run(federation, sessions.open)
    losses = [record.metrics["loss"] for record in result.rounds]
    assert losses[-1] < losses[0]
    assert all(bool(torch.isfinite(value).all()) for value in result.adapter.tensors.values())
