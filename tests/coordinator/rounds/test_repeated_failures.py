"""Jobs that would fail the same way again: they are not retried, and the round names the reason."""

import json
from collections.abc import Sequence
from typing import Any

from tests.support.federation_rig import Actor, FederationRig

PLACE = "worker_agent.training.forward:40"
TOLD = f"training_failed (IndexError at {PLACE})"
SECRET = "a patient's name"


def fail(actor: Actor, *, transient: bool = True, code: str = "training_failed", **facts: str) -> str:
    """Fails the actor's next job; returns the state it is in then."""
    lease = actor.lease()
    assert lease is not None
    body: dict[str, Any] = {"boot_id": actor.worker.boot_id, "code": code, "detail": SECRET, "transient": transient}
    if code == "training_failed":
        body["facts"] = {"error": "IndexError", "place": PLACE, "reference": "9f3c01de", **facts}
    answer = actor.http.post(f"/v1/jobs/{lease['job_id']}/fail", json=body)
    answer.raise_for_status()
    return str(answer.json()["state"])


def fail_twice(actors: Sequence[Actor]) -> None:
    for actor in actors:
        assert [fail(actor), fail(actor)] == ["offered", "failed"]


class TestAllFailTheSameWay:
    def test_the_federation_fails_at_once_and_says_why(self, rig: FederationRig) -> None:
        actors = rig.running(3, clients_per_round=3, min_clients=2, max_round_retries=3)
        fail_twice(actors)
        rig.settle()
        shown, (only,) = rig.show(), rig.rounds()
        assert (shown["state"], shown["reason"]) == ("failed", "quorum_missed")
        assert f"3 of 3 clients: {TOLD}." in shown["reason_detail"]
        assert only["reason_detail"] == shown["reason_detail"]
        told = {event["type"]: event["data"] for event in rig.get("events")["items"]}
        assert told["round.failed"]["detail"] == told["federation.failed"]["detail"] == shown["reason_detail"]
        assert SECRET not in json.dumps([shown, only, told])

    def test_the_most_frequent_reason_is_told(self, rig: FederationRig) -> None:
        first, second, third = rig.running(3, clients_per_round=3, min_clients=2)
        fail_twice([second, third])
        assert fail(first, transient=False, code="training_diverged") == "failed"
        rig.settle()
        assert f"2 of 3 clients: {TOLD}." in rig.show()["reason_detail"]


class TestOneFails:
    def test_another_attempt_asks_others_alone(self, rig: FederationRig) -> None:
        actors = rig.running(3, clients_per_round=2, rounds=1)
        cohort = rig.get("rounds", "1")["cohort"]
        spare = ({0, 1, 2} - set(cohort)).pop()
        fail_twice([actors[cohort[0]]])
        assert actors[cohort[1]].work() == "train"
        rig.settle()
        first, again = rig.rounds()
        assert (first["state"], first["reason"]) == ("withdrawn", "quorum_missed")
        assert f"1 of 2 clients: {TOLD}." in first["reason_detail"]
        assert (again["cohort"], actors[cohort[0]].lease()) == ([spare], None)
        assert actors[spare].work() == "train"
        rig.settle()
        assert rig.show()["state"] == "completed"

    def test_it_is_asked_again_in_the_next_round(self, rig: FederationRig) -> None:
        first, second = rig.running(2, min_clients=1, rounds=2)
        fail_twice([first])
        assert second.work() == "train"
        rig.settle()
        assert [row["cohort"] for row in rig.rounds()] == [[0, 1], [0, 1]]
        assert first.work() == "train"

    def test_it_is_asked_again_after_a_pause_in_which_its_node_was_mended(self, rig: FederationRig) -> None:
        first, second = rig.running(2, rounds=1, max_round_retries=0)
        fail_twice([first])
        rig.post("pause", now=True)
        rig.post("resume")
        assert rig.get("rounds", "1")["cohort"] == [0, 1]
        assert [first.work(), second.work()] == ["train", "train"]
        rig.settle()
        assert rig.show()["state"] == "completed"

    def test_a_failure_that_may_pass_is_tried_by_the_same_client_again(self, rig: FederationRig) -> None:
        first, second = rig.running(2, rounds=1, max_attempts=1)
        assert fail(first, code="out_of_memory") == "failed"
        assert second.work() == "train"
        rig.settle()
        assert rig.get("rounds", "1")["cohort"] == [0]
        assert "1 of 2 clients: out_of_memory." in rig.get("rounds", "1", attempt=1)["reason_detail"]
        assert first.work() == "train"
