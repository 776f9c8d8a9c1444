"""Phases that an algorithm may request: preparation, everybody, notes and an end of its own; and its failures."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from federated.payloads.payload import Payload
from federated.protocol import Capabilities, DatasetFacts
from tests.support.algorithms import installed
from tests.support.federation_rig import DATASET, Actor, FederationRig, update_of

CAPABILITIES = Capabilities(algorithms={"phased": 1}, datasets=(DatasetFacts(name=DATASET),))


@pytest.fixture(autouse=True)
def phased() -> Iterator[None]:
    with installed():
        yield


def running(rig: FederationRig, actors: int = 3, config: dict[str, Any] | None = None, **changes: Any) -> list[Actor]:
    """A federation of the phased algorithm, all of whose clients are described."""
    rig.create(algorithm="phased", config=config or {}, **changes)
    made = [rig.join(rig.actor(capabilities=CAPABILITIES)) for _ in range(actors)]
    rig.post("start")
    for actor in made:
        assert actor.work() == "describe"
    rig.settle()
    return made


class TestPreparation:
    def test_everybody_prepares_and_the_numbers_of_the_train_rounds_begin_at_one(self, rig: FederationRig) -> None:
        actors = running(rig, rounds=2)
        first = rig.get("rounds", "1", kind="prepare")
        assert (first["cohort"], first["state"]) == ([0, 1, 2], "collecting")
        assert [actor.work() for actor in actors] == ["train"] * 3
        rig.settle()
        prepared, opened = rig.rounds()
        assert (prepared["kind"], prepared["state"], prepared["adapter"]) == ("prepare", "closed", None)
        assert (opened["kind"], opened["number"], len(opened["cohort"])) == ("train", 1, 2)
        assert rig.show()["rounds_done"] == 0
        rig.play(2)
        assert [(row["kind"], row["number"]) for row in rig.rounds()] == [
            ("prepare", 1),
            ("train", 1),
            ("train", 2),
        ]
        assert rig.show()["reason"] == "stopped_rounds"

    def test_who_misses_the_preparation_is_listed_and_takes_part_later(self, rig: FederationRig) -> None:
        actors = running(rig, rounds=1, prepare_deadline_seconds=600.0, min_clients=1)
        for actor in actors[:2]:
            actor.work()
        lease = actors[2].lease()
        assert lease is not None
        failed = {"boot_id": actors[2].worker.boot_id, "code": "training_failed", "detail": "", "transient": False}
        actors[2].http.post(f"/v1/jobs/{lease['job_id']}/fail", json=failed).raise_for_status()
        rig.settle()
        prepared = rig.get("rounds", "1", kind="prepare")
        assert (prepared["state"], prepared["reason_detail"]) == ("closed", "without the clients 2")

    def test_a_state_that_asks_for_everybody_gets_everybody(self, rig: FederationRig) -> None:
        actors = running(rig, 3, {"everybody": True}, rounds=1)
        for actor in actors:
            actor.work()
        rig.settle()
        assert rig.get("rounds", "1")["cohort"] == [0, 1, 2]
        actors[0].work()
        actors[1].work()
        rig.settle()
        assert rig.get("rounds", "1")["state"] == "collecting"
        actors[2].work()
        rig.settle()
        assert rig.get("rounds", "1")["state"] == "closed"


class TestNotesAndEnd:
    def test_the_server_remembers_a_note_for_each_client(self, rig: FederationRig) -> None:
        actors = running(rig, 2, rounds=2)
        actors[0].make_update = lambda instruction: update_of(2.0, instruction)
        for actor in actors:
            actor.work()
        rig.settle()
        leases = [actor.lease() for actor in actors]
        notes = [
            float(actor.instruction(lease)["note"]) for actor, lease in zip(actors, leases, strict=True) if lease
        ]
        assert notes == [2.0, 1.0]

    def test_the_algorithm_may_end_the_federation(self, rig: FederationRig) -> None:
        running(rig, 2, {"end_at": 3.5}, rounds=50)
        rig.play(1)
        shown = rig.show()
        assert (shown["state"], shown["reason"]) == ("completed", "converged")
        adapter = rig.get("rounds", "1")["adapter"]
        assert (adapter["kind"], sorted(adapter["files"])) == ("ledger", ["README.md", "ledger.safetensors"])
        answer = rig.owner.owner.get(rig.path("adapter", "ledger.safetensors"))
        assert torch.equal(Payload.decode(answer.content)["sum"], torch.tensor([4.0]))

    def test_its_own_check_rejects_an_update_and_names_the_tensor(self, rig: FederationRig) -> None:
        actors = running(rig, 2, max_round_retries=0)
        actors[0].make_update = lambda instruction: update_of(-1.0, instruction)
        for actor in actors:
            actor.work()
        rig.settle()
        (job,) = [job for job in rig.get("rounds", "1", "jobs", kind="prepare")["items"] if job["problem"]]
        assert (job["state"], job["problem"]["code"], job["problem"]["tensor"]) == (
            "rejected",
            "update_refused",
            "value",
        )
        assert rig.show()["reason"] == "quorum_missed"


class TestABrokenAlgorithm:
    @pytest.mark.parametrize("step", ["start", "plan", "aggregate"])
    def test_a_step_that_raises_fails_the_federation_and_says_so(self, rig: FederationRig, step: str) -> None:
        for actor in running(rig, 2, {"broken": step}):
            actor.work()
        rig.settle()
        shown = rig.show()
        assert (shown["state"], shown["reason"]) == ("failed", "algorithm_failed")
        assert shown["reason_detail"].startswith(f"{step}: RuntimeError; the coordinator's log has")

    def test_an_evaluation_that_cannot_be_planned_is_left_out(self, rig: FederationRig) -> None:
        running(rig, 2, {"broken": "evaluate"}, rounds=1, evaluation={"every": 1})
        rig.play(1)
        closed = rig.get("rounds", "1")
        assert (closed["state"], closed["reason_detail"][:37]) == ("closed", "not evaluated: evaluate: RuntimeError")
        assert rig.show()["state"] == "completed"
