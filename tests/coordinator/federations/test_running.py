"""Running federations over real HTTP: start, description, pause, resume, cancel, events."""

import threading

import pytest

from federated.protocol import Capabilities, DatasetFacts
from tests.coordinator.clients.scene import everything
from tests.support.federation_rig import CAPABILITIES, DATASET, MODEL, FederationRig
from tests.support.service import problem


class TestStart:
    def test_operators_start_and_viewers_do_not(self, rig: FederationRig) -> None:
        rig.create()
        problem(rig.owner.viewer.post(rig.path("start")), 403, "role_too_small")
        rig.owner.operator.post(rig.path("start")).raise_for_status()
        problem(rig.owner.operator.post(rig.path("start")), 409, "federation_state")

    def test_a_started_federation_says_whom_it_waits_for(self, rig: FederationRig) -> None:
        rig.create()
        shown = rig.post("start")
        assert shown["state"] == "running"
        assert shown["waiting_for"].startswith("waiting_for_clients 0/2, ")
        assert shown["waiting_since"] == shown["started_at"]
        rig.join(rig.actor())
        rig.settle()
        shown = rig.show()
        assert shown["waiting_for"].startswith("describing 0/1, ")
        assert shown["clients"] == {"registered": 1, "ready": 0, "alive": 0, "out": 0, "left": 0, "expelled": 0}

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"algorithms": {}}, "algorithm fedavg: revision 1"),
            ({"algorithms": {"fedavg": 7}}, "the worker has 7"),
            ({"max_rank": 1}, "rank 2 is required, the worker allows at most 1"),
            ({"models": ["other"]}, "base model 'tiny'"),
        ],
    )
    def test_a_federation_that_no_worker_could_run_says_so(
        self, rig: FederationRig, changes: dict[str, object], words: str
    ) -> None:
        rig.create()
        wanted = CAPABILITIES.model_dump() | changes
        rig.join(rig.actor(capabilities=Capabilities.model_validate(wanted)))
        before = everything()
        told = problem(rig.owner.owner.post(rig.path("start")), 409, "no_worker_can_run")
        assert words in told["detail"]
        assert "worker 0 messages" in told["detail"]
        assert "other" not in told["detail"], "what else a worker of another organization offers"
        assert everything() == before

    def test_one_worker_that_can_is_enough_to_start(self, rig: FederationRig) -> None:
        rig.create()
        unable = Capabilities(datasets=(DatasetFacts(name=DATASET),))
        rig.join(rig.actor(capabilities=unable))
        rig.join(rig.actor())
        assert rig.post("start")["state"] == "running"


class TestDescribe:
    def test_a_client_with_another_model_is_out_and_its_tensor_named(self, rig: FederationRig) -> None:
        rig.create(clients_per_round=2)
        first, odd, last = (rig.join(rig.actor()) for _ in range(3))
        other = MODEL.tensors[1].model_copy(update={"shape": (4, 3)})
        odd.model = MODEL.model_copy(update={"tensors": (MODEL.tensors[0], other)})
        rig.post("start")
        for actor in (first, odd, last):
            assert actor.work() == "describe"
        rig.settle()
        shown = rig.owner.owner.get(f"/v1/clients/{odd.client_id}").json()
        assert (shown["state"], shown["reason"]) == ("out", "model_mismatch")
        assert shown["reason_detail"].startswith("layer.lora_B.weight:")
        assert rig.get("rounds", "1")["cohort"] == [0, 2]
        assert rig.get("rounds", "1")["not_reproducible"] == []

    def test_restored_it_is_described_again_and_takes_part(self, rig: FederationRig) -> None:
        rig.create(clients_per_round=2)
        first, odd = (rig.join(rig.actor()) for _ in range(2))
        odd.model = MODEL.model_copy(update={"layers": 2})
        rig.post("start")
        for actor in (first, odd):
            actor.work()
        rig.settle()
        assert rig.show()["waiting_for"].startswith("waiting_for_clients 1/2")
        odd.model = MODEL
        rig.owner.owner.post(f"/v1/clients/{odd.client_id}/restore").raise_for_status()
        rig.settle()
        assert odd.work() == "describe"
        rig.settle()
        rig.reconcile()
        assert rig.get("rounds", "1")["cohort"] == [0, 1]

    def test_weights_other_than_those_asked_for_are_out(self, rig: FederationRig) -> None:
        rig.create(base_model={"id": "tiny", "weights_sha256": "1" * 64})
        actor = rig.join(rig.actor())
        rig.post("start")
        actor.work()
        rig.settle()
        shown = rig.owner.owner.get(f"/v1/clients/{actor.client_id}").json()
        assert (shown["state"], shown["reason"]) == ("out", "model_mismatch")
        assert "weights_digest" in shown["reason_detail"]

    def test_whoever_trains_is_held_to_the_weights_that_were_described(self, rig: FederationRig) -> None:
        rig.create()
        actors = [rig.join(rig.actor()) for _ in range(2)]
        rig.post("start")
        described = [actor.lease() for actor in actors]
        assert [lease and lease["work"]["base_model"]["weights_sha256"] for lease in described] == [None, None]
        for actor, lease in zip(actors, described, strict=True):
            assert lease is not None
            actor.submit(lease).raise_for_status()
        rig.settle()
        trained = [actor.lease() for actor in actors]
        assert [lease and lease["work"]["base_model"]["weights_sha256"] for lease in trained] == ["0" * 64] * 2

    def test_nobody_described_in_time_fails_the_federation(self, rig: FederationRig) -> None:
        rig.create(wait_for_clients_seconds=0.5)
        rig.join(rig.actor())
        rig.post("start")
        while rig.show()["state"] == "running":
            rig.reconcile()
        assert (rig.show()["state"], rig.show()["reason"]) == ("failed", "not_enough_clients")

    def test_a_late_joiner_is_drawn_in_the_next_round(self, rig: FederationRig) -> None:
        first, second = rig.running(rounds=2, clients_per_round=2, over_selection=0)
        late = rig.join(rig.actor())
        rig.settle()
        assert late.work() == "describe"
        rig.settle()
        assert [first.work(), second.work()] == ["train", "train"]
        rig.settle()
        opened = rig.get("rounds", "2")
        assert len(opened["cohort"]) == 2
        assert rig.show()["clients"]["alive"] == 3


class TestPause:
    def test_the_open_round_runs_to_its_end_and_none_follows(self, rig: FederationRig) -> None:
        first, second = rig.running(rounds=2)
        shown = rig.post("pause")
        assert (shown["state"], shown["waiting_for"].split()[0]) == ("paused", "collecting")
        first.work(), second.work()
        rig.settle()
        rig.reconcile()
        assert (rig.show()["waiting_for"], len(rig.rounds())) == ("paused", 1)
        rig.post("resume")
        rig.play(1)
        assert rig.show()["state"] == "completed"
        assert [row["not_reproducible"] for row in rig.rounds()] == [[], []]

    def test_at_once_the_open_round_is_taken_back_and_what_came_still_counts(self, rig: FederationRig) -> None:
        first, second = rig.running(rounds=1)
        first.work()
        rig.settle()
        lease = second.lease()
        assert lease is not None
        shown = rig.post("pause", now=True)
        assert (shown["state"], shown["waiting_for"]) == ("paused", "paused")
        assert [(row["state"], row["reason"]) for row in rig.rounds()] == [("withdrawn", "paused")]
        problem(second.submit(lease), 409, "round_closed")
        rig.post("resume")
        again = rig.get("rounds", "1")
        assert (again["attempt"], again["accepted"], again["cohort"]) == (2, [0], [1])
        second.work()
        rig.settle()
        closed = rig.get("rounds", "1")
        assert (closed["state"], closed["accepted"], closed["not_reproducible"]) == ("closed", [0, 1], ["retry"])

    def test_a_pause_does_not_count_as_a_missed_quorum(self, rig: FederationRig) -> None:
        first, second = rig.running(rounds=1, max_round_retries=0)
        for _ in range(3):
            rig.post("pause", now=True)
            rig.post("resume")
        assert [first.work(), second.work()] == ["train", "train"]
        rig.settle()
        assert rig.show()["state"] == "completed"
        assert rig.get("rounds", "1")["attempt"] == 4

    def test_a_round_with_its_result_is_closed_and_not_taken_back(self, rig: FederationRig) -> None:
        first, second = rig.running(rounds=2, evaluation={"every": 1})
        first.work(), second.work()
        rig.settle()
        assert rig.rounds()[0]["state"] == "evaluating"
        rig.post("pause", now=True)
        assert [(row["state"], row["number"]) for row in rig.rounds()] == [("closed", 1)]
        assert first.lease() is None

    @pytest.mark.parametrize("call", ["pause", "resume"])
    def test_only_what_runs_is_paused_and_only_what_is_paused_resumes(self, rig: FederationRig, call: str) -> None:
        rig.create()
        problem(rig.owner.owner.post(rig.path(call)), 409, "federation_state")


class TestCancel:
    def test_everything_open_is_taken_back_and_adapters_stay(self, rig: FederationRig) -> None:
        first, _ = rig.running(rounds=3)
        rig.play(1)
        lease = first.lease()
        shown = rig.post("cancel")
        assert (shown["state"], shown["reason"], shown["waiting_for"]) == ("cancelled", "cancelled", None)
        assert [row["state"] for row in rig.rounds()] == ["closed", "withdrawn"]
        assert lease is not None
        problem(first.submit(lease), 409, "round_closed")
        assert first.lease() is None
        assert rig.owner.owner.get(rig.path("adapter")).status_code == 200
        problem(rig.owner.owner.post(rig.path("cancel")), 409, "federation_state")


class TestClientsThatGo:
    def test_the_job_of_a_client_that_left_is_lost_for_the_quorum(self, rig: FederationRig) -> None:
        first, second = rig.running(rounds=1, min_clients=1)
        first.work()
        rig.settle()
        rig.owner.owner.post(f"/v1/clients/{second.client_id}/leave").raise_for_status()
        rig.settle()
        rig.reconcile()
        closed = rig.get("rounds", "1")
        assert (closed["state"], closed["accepted"]) == ("closed", [0])

    def test_a_lost_lease_is_offered_again_to_a_worker_that_lives(self, rig: FederationRig) -> None:
        first, second = rig.running(rounds=1, lease_seconds=1.0)
        second.work()
        assert first.lease() is not None
        job = rig.get("rounds", "1", "jobs")["items"][0]
        while rig.get("rounds", "1", "jobs")["items"][0]["state"] == "leased":
            rig.reconcile()
        again = rig.get("rounds", "1", "jobs")["items"][0]
        assert (again["state"], again["attempt"], again["id"]) == ("offered", 2, job["id"])
        assert first.work() == "train"
        rig.settle()
        assert rig.show()["state"] == "completed"


class TestEvents:
    def test_they_come_in_order_and_after_the_last_one_seen(self, rig: FederationRig) -> None:
        rig.create()
        rig.post("start")
        page = rig.get("events")
        assert [item["type"] for item in page["items"]] == ["federation.created", "federation.started"]
        assert rig.get("events", after=page["items"][0]["number"])["items"] == page["items"][1:]
        assert rig.get("events", after=page["next_after"])["items"] == []

    def test_a_caller_may_wait_for_the_next_one(self, rig: FederationRig) -> None:
        rig.create()
        after = rig.get("events")["next_after"]
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(rig.get("events", after=after, wait=30)))
        waiting.start()
        rig.post("start")
        waiting.join()
        assert [item["type"] for item in answers[0]["items"]] == ["federation.started"]

    def test_a_wait_beyond_the_limit_is_refused(self, rig: FederationRig) -> None:
        rig.create()
        problem(rig.owner.owner.get(rig.path("events"), params={"wait": 31}), 422, "request_invalid")
