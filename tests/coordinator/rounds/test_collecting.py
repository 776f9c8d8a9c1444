"""Collecting of updates over real HTTP: quorum, refusals, over-selection, deadlines and further attempts."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
import torch

from coordinator.db.sessions import utcnow, writing
from coordinator.models import Worker
from federated.payloads.payload import Payload
from tests.support.federation_rig import A, FederationRig, update_of
from tests.support.service import problem


def until_past(rig: FederationRig) -> None:
    """Waits until the first round's deadline is over, then lets the reconciler notice."""
    rig.settle()
    deadline = datetime.fromisoformat(rig.get("rounds", "1")["deadline_at"])
    time.sleep(max(0.0, (deadline - utcnow()).total_seconds()))
    rig.reconcile()


class TestARound:
    def test_two_rounds_of_two_clients_end_in_an_adapter(self, rig: FederationRig) -> None:
        rig.running()
        assert rig.show()["waiting_for"].startswith("collecting 0/2, 2 not started")
        rig.play(2)
        shown = rig.show()
        assert (shown["state"], shown["reason"], shown["adapter_round"]) == ("completed", "stopped_rounds", 2)
        rounds = rig.rounds()
        assert [row["number"] for row in rounds] == [1, 2]
        assert rounds[1]["start_digest"] == rounds[0]["state_digest"]
        assert [row["not_reproducible"] for row in rounds] == [[], []]

    def test_metrics_seconds_and_traffic_are_kept_and_served(self, rig: FederationRig) -> None:
        rig.running(rounds=1)
        rig.play(1)
        shown = rig.get("rounds", "1")
        assert shown["metrics"] == {"train_loss": 0.25, "clients": 2, "examples": 30}
        assert (shown["upload_bytes"], shown["download_bytes"]) == (200, 100)
        assert {"waiting", "collecting", "aggregating", "longest_training", "total"} == set(shown["seconds"])
        assert shown["seconds"]["longest_training"] == 1.5
        assert shown["environment"]["aggregation_threads"] == 2
        jobs = rig.get("rounds", "1", "jobs")["items"]
        assert [(job["ordinal"], job["upload_bytes"], job["state"]) for job in jobs] == [
            (0, 100, "accepted"),
            (1, 100, "accepted"),
        ]

    def test_its_jobs_come_in_pages(self, rig: FederationRig) -> None:
        rig.running(rounds=1, evaluation={"every": 1})
        rig.play(1)
        path, seen = f"/v1/rounds/{rig.rounds()[0]['id']}/jobs?limit=1", []
        while path:
            answer = rig.owner.viewer.get(path)
            seen += [(job["kind"], job["ordinal"]) for job in answer.json()["items"]]
            path = answer.links.get("next", {}).get("url", "")
            assert bool(path) == (answer.json()["next_cursor"] is not None)
        assert seen == [("train", 0), ("train", 1), ("evaluate", 0), ("evaluate", 1)]
        answer = rig.owner.viewer.get(rig.path("rounds", "1", "jobs"), params={"cursor": "am9iX3g"})
        problem(answer, 400, "cursor_invalid")

    def test_a_number_too_large_for_any_table_is_refused(self, rig: FederationRig) -> None:
        rig.create()
        for path in (f"rounds/{2**31}", f"rounds/1?attempt={2**63}", f"rounds/{2**31}/adapter"):
            problem(rig.owner.viewer.get(f"{rig.path()}/{path}"), 422, "request_invalid")
        cursor = "OTIyMzM3MjAzNjg1NDc3NTgwOA"
        answer = rig.owner.viewer.get(rig.path("rounds"), params={"cursor": cursor})
        problem(answer, 400, "cursor_invalid")
        problem(rig.owner.viewer.get(rig.path("rounds", str(2**31 - 1))), 404, "round_unknown")

    def test_equal_instructions_are_one_artifact(self, rig: FederationRig) -> None:
        first, second = rig.running()
        leases = [actor.lease() for actor in (first, second)]
        digests = {lease["instruction"]["digest"] for lease in leases if lease}
        assert len(digests) == 1

    def test_the_seed_of_a_job_depends_on_round_and_ordinal_alone(self, rig: FederationRig) -> None:
        seeds = []
        for _ in range(2):
            first, second = rig.running(rounds=1)
            for actor in (first, second):
                lease = actor.lease()
                assert lease is not None
                seeds.append(lease["seed"])
        assert seeds[:2] == seeds[2:]
        assert len(set(seeds)) == 2


class TestRefusal:
    @pytest.mark.parametrize(
        ("make", "code", "tensor"),
        [
            (lambda instruction: _with(instruction, float("nan")), "update_not_finite", A),
            (lambda instruction: _with(instruction, float("inf")), "update_not_finite", A),
            (lambda instruction: _with(instruction, 1e6), "update_norm", A),
        ],
    )
    def test_a_bad_update_is_rejected_with_its_tensor_and_its_client_not_asked_again(
        self, rig: FederationRig, make: Callable[[Payload], Payload], code: str, tensor: str
    ) -> None:
        bad, good, spare = rig.running(3, max_update_norm=100, clients_per_round=2, rounds=1, max_round_retries=2)
        cohort = rig.get("rounds", "1")["cohort"]
        actors = [bad, good, spare]
        drawn, other = [actors[ordinal] for ordinal in cohort], actors[({0, 1, 2} - set(cohort)).pop()]
        drawn[0].make_update = make
        assert [actor.work() for actor in drawn] == ["train", "train"]
        rig.settle()
        refused = next(job for job in rig.get("rounds", "1", "jobs", attempt=1)["items"] if job["problem"])
        assert (refused["state"], refused["problem"]["code"]) == ("rejected", code)
        assert (refused["problem"]["tensor"], refused["problem"]["status"]) == (tensor, 422)
        assert refused["ordinal"] == cohort[0]
        again = rig.get("rounds", "1")
        assert (again["attempt"], again["accepted"], again["state"]) == (2, [cohort[1]], "collecting")
        assert again["cohort"] == [actors.index(other)]
        assert drawn[0].lease() is None
        assert other.work() == "train"
        rig.settle()
        closed = rig.get("rounds", "1")
        assert (closed["state"], closed["not_reproducible"]) == ("closed", ["retry"])
        assert closed["accepted"] == sorted([cohort[1], actors.index(other)])

    def test_a_truncated_update_is_refused_at_once_and_changes_nothing(self, rig: FederationRig) -> None:
        first, _ = rig.running()
        lease = first.lease()
        assert lease is not None
        instruction = first.instruction(lease)
        short = Payload({A: torch.ones(2, 4)})
        digest = first.put(short)
        body = {"update": first.signed(lease, digest, 1.0, 1)}
        answer = first.http.post(f"/v1/jobs/{lease['job_id']}/submit", json=body)
        assert problem(answer, 422, "update_refused")["tensor"] == "layer.lora_B.weight"
        first.make_update = lambda instruction: update_of(2.0, instruction)
        assert first.submit(lease).status_code == 200
        assert set(instruction.facts["expects"]) == {A, "layer.lora_B.weight"}


def _with(instruction: Payload, value: float) -> Payload:
    made = update_of(1.0, instruction)
    spoiled = made[A].clone()
    spoiled[0, 0] = value
    return Payload({**made, A: spoiled})


class TestQuorum:
    def test_over_selection_closes_with_the_first_and_withdraws_the_rest(self, rig: FederationRig) -> None:
        actors = rig.running(3, clients_per_round=2, over_selection=1, rounds=1)
        leases = [actor.lease() for actor in actors]
        for actor, lease in list(zip(actors, leases, strict=True))[:0:-1]:
            assert lease is not None
            assert actor.submit(lease).status_code == 200
        rig.settle()
        closed = rig.get("rounds", "1")
        assert (closed["state"], closed["accepted"]) == ("closed", [1, 2])
        assert closed["not_reproducible"] == ["client_lost", "over_selection"]
        assert leases[0] is not None
        problem(actors[0].submit(leases[0]), 409, "round_closed")
        assert rig.get("rounds", "1")["late_updates"] == 1
        states = [job["state"] for job in rig.get("rounds", "1", "jobs")["items"]]
        assert states == ["withdrawn", "accepted", "accepted"]

    def test_with_no_job_open_the_quorum_closes_the_round(self, rig: FederationRig) -> None:
        first, second = rig.running(2, min_clients=1, rounds=1)
        assert first.work() == "train"
        lease = second.lease()
        assert lease is not None
        failed = {"boot_id": second.worker.boot_id, "code": "training_failed", "detail": "x", "transient": False}
        second.http.post(f"/v1/jobs/{lease['job_id']}/fail", json=failed).raise_for_status()
        rig.settle()
        closed = rig.get("rounds", "1")
        assert (closed["state"], closed["accepted"], closed["reason_detail"]) == (
            "closed",
            [0],
            "without the clients 1",
        )

    def test_at_the_deadline_the_quorum_closes_the_round(self, rig: FederationRig) -> None:
        first, _ = rig.running(2, min_clients=1, rounds=1, round_deadline_seconds=1.5)
        assert first.work() == "train"
        until_past(rig)
        closed = rig.get("rounds", "1")
        assert (closed["state"], closed["not_reproducible"]) == ("closed", ["missed_deadline"])

    def test_a_missed_quorum_keeps_what_came_and_asks_others_first(self, rig: FederationRig) -> None:
        actors = rig.running(3, clients_per_round=2, rounds=1, round_deadline_seconds=1.5)
        cohort = rig.get("rounds", "1")["cohort"]
        spare = ({0, 1, 2} - set(cohort)).pop()
        assert actors[cohort[0]].work() == "train"
        until_past(rig)
        first, again = rig.rounds()
        assert (first["state"], first["reason"], first["accepted"]) == ("withdrawn", "quorum_missed", [cohort[0]])
        assert (again["attempt"], again["cohort"], again["accepted"]) == (2, [spare], [cohort[0]])
        assert actors[spare].work() == "train"
        rig.settle()
        assert rig.get("rounds", "1")["accepted"] == sorted([cohort[0], spare])
        assert rig.show()["state"] == "completed"

    def test_without_retries_left_the_federation_fails_with_the_reason(self, rig: FederationRig) -> None:
        rig.running(2, round_deadline_seconds=1.0, max_round_retries=0)
        until_past(rig)
        shown = rig.show()
        assert (shown["state"], shown["reason"]) == ("failed", "quorum_missed")
        assert "0 of at least 2 updates" in shown["reason_detail"]
        assert shown["waiting_for"] is None

    def test_too_few_clients_fail_the_federation_with_the_reason(self, rig: FederationRig) -> None:
        rig.create(clients_per_round=2, wait_for_clients_seconds=1.5)
        actor = rig.join(rig.actor())
        rig.post("start")
        assert actor.work() == "describe"
        rig.settle()
        assert rig.show()["waiting_for"].startswith("waiting_for_clients 1/2, ")
        while rig.show()["state"] == "running":
            time.sleep(0.05)
            rig.reconcile()
        shown = rig.show()
        assert (shown["state"], shown["reason"]) == ("failed", "not_enough_clients")

    def test_a_registered_client_that_is_away_is_noted(self, rig: FederationRig) -> None:
        rig.create(clients_per_round=2, wait_for_clients_seconds=600)
        actors = [rig.join(rig.actor()) for _ in range(3)]
        rig.post("start")
        for actor in actors:
            assert actor.work() == "describe"
        with writing() as session:
            session.get_one(Worker, actors[2].worker.id).last_seen_at = utcnow() - timedelta(hours=1)
        rig.settle()
        opened = rig.get("rounds", "1")
        assert opened["cohort"] == [0, 1]
        assert opened["not_reproducible"] == ["client_not_alive"]
