"""Evaluation after a round: the clients that evaluate, the metrics that count, and failures that harm nothing."""

from typing import Any

from sqlalchemy import update

from coordinator.db.sessions import writing
from coordinator.models import Round
from coordinator.rounds.schemas import RoundResponse
from tests.support.federation_rig import FederationRig
from tests.support.service import problem

# What a round counts itself, and what an algorithm's server half measures.
RECORDED = ("train_loss", "clients", "examples", "upload_bytes", "download_bytes", "evaluated_by", "own_loss")


class TestEvaluation:
    def test_the_adapter_is_there_before_the_metrics_and_means_are_weighted(self, rig: FederationRig) -> None:
        first, second = rig.running(rounds=1, evaluation={"every": 1})
        first.evaluation, second.evaluation = {"loss": 1.0, "accuracy": 0.5}, {"loss": 2.0, "accuracy": 1.0}
        first.evaluation_examples, second.evaluation_examples = 3, 1
        assert [first.work(), second.work()] == ["train", "train"]
        rig.settle()
        opened = rig.get("rounds", "1")
        assert opened["state"] == "evaluating"
        assert opened["waiting_for"].startswith("evaluating 0/2, ")
        assert rig.owner.owner.get(rig.path("adapter")).status_code == 200
        assert [first.work(), second.work()] == ["evaluate", "evaluate"]
        rig.settle()
        closed = rig.get("rounds", "1")
        assert closed["state"] == "closed"
        assert closed["metrics"] == {
            "train_loss": 0.25, "clients": 2, "examples": 30, "loss": 1.25, "accuracy": 0.625, "evaluated_by": 2,
        }  # fmt: skip
        assert "evaluating" in closed["seconds"]

    def test_only_due_rounds_and_the_last_are_evaluated(self, rig: FederationRig) -> None:
        rig.running(rounds=3, evaluation={"every": 2})
        rig.play(3)
        assert ["loss" in row["metrics"] for row in rig.rounds()] == [False, True, True]

    def test_a_client_that_only_evaluates_is_never_drawn_and_always_asked(self, rig: FederationRig) -> None:
        rig.create(rounds=1, evaluation={"every": 1})
        first, second = (rig.join(rig.actor()) for _ in range(2))
        judge = rig.join(rig.actor(), evaluates_only=True)
        rig.post("start")
        assert [actor.work() for actor in (first, second, judge)] == ["describe"] * 3
        rig.settle()
        assert rig.get("rounds", "1")["cohort"] == [0, 1]
        assert [actor.work() for actor in (first, second, judge)] == ["train", "train", None]
        rig.settle()
        assert [actor.work() for actor in (first, second, judge)] == ["evaluate"] * 3
        rig.settle()
        assert rig.get("rounds", "1")["metrics"]["evaluated_by"] == 3

    def test_all_means_also_those_that_were_not_drawn(self, rig: FederationRig) -> None:
        actors = rig.running(3, rounds=1, evaluation={"every": 1, "who": "all"})
        for actor in actors:
            actor.work()
        rig.settle()
        assert [actor.work() for actor in actors] == ["evaluate"] * 3

    def test_answers_that_fail_or_do_not_come_fail_nothing(self, rig: FederationRig) -> None:
        first, second = rig.running(rounds=1, evaluation={"every": 1}, evaluation_deadline_seconds=1.0)
        first.work(), second.work()
        rig.settle()
        lease = first.lease()
        assert lease is not None
        failed = {"boot_id": first.worker.boot_id, "code": "data_empty", "detail": "", "transient": False}
        first.http.post(f"/v1/jobs/{lease['job_id']}/fail", json=failed).raise_for_status()
        late = second.lease()
        while rig.show()["state"] == "running":
            rig.reconcile()
        assert late is not None
        problem(second.submit(late), 409, "round_closed")
        closed = rig.get("rounds", "1")
        assert (closed["state"], "loss" in closed["metrics"]) == ("closed", False)

    def test_a_target_ends_the_federation(self, rig: FederationRig) -> None:
        rig.running(rounds=9, evaluation={"every": 1}, stopping={"metric": "accuracy", "target": 0.7})
        rig.play(1)
        assert (rig.show()["state"], rig.show()["reason"]) == ("completed", "stopped_target")


class TestNothingMeasured:
    """What was asked for and cannot come is told, by the round, an event and the federation's end."""

    def told(self, rig: FederationRig) -> dict[str, Any]:
        (event,) = [event["data"] for event in rig.get("events")["items"] if event["type"] == "round.not_evaluated"]
        assert rig.get("rounds", "1")["reason_detail"].endswith(f"not evaluated: {event['detail']}")
        return event

    def test_no_client_has_held_out_rows(self, rig: FederationRig) -> None:
        stopping = {"metric": "accuracy", "patience": 1}
        rig.create(rounds=1, evaluation={"every": 1}, stopping=stopping)
        for _ in range(2):
            rig.join(rig.actor(evaluation_examples=0))
        rig.post("start")
        rig.play(1)
        told = self.told(rig)
        assert (told["detail"], told["metric"]) == ("no client has enough held-out examples", "accuracy")
        shown = rig.show()
        assert (shown["state"], shown["reason"]) == ("completed", "stopped_rounds")
        assert shown["reason_detail"].startswith("No round measured 'accuracy'")

    def test_nobody_that_was_asked_answers(self, rig: FederationRig) -> None:
        first, second = rig.running(rounds=1, evaluation={"every": 1})
        assert [first.work(), second.work()] == ["train", "train"]
        rig.settle()
        for actor in (first, second):
            lease = actor.lease()
            assert lease is not None
            failed = {"boot_id": actor.worker.boot_id, "code": "data_missing", "transient": False}
            actor.http.post(f"/v1/jobs/{lease['job_id']}/fail", json=failed).raise_for_status()
        rig.settle()
        assert self.told(rig)["detail"] == "no metrics came of 2 clients; 2 of them: data_missing"
        assert rig.show()["reason_detail"] is None

    def test_the_answers_have_not_what_the_stopping_rule_waits_for(self, rig: FederationRig) -> None:
        actors = rig.running(rounds=1, evaluation={"every": 1}, stopping={"metric": "accuracy", "target": 0.5})
        for actor in actors:
            actor.evaluation = {"loss": 1.0}
        rig.play(1)
        assert self.told(rig)["detail"] == "no client reported 'accuracy'"

    def test_a_round_that_is_not_to_be_evaluated_says_nothing(self, rig: FederationRig) -> None:
        rig.running(rounds=2, evaluation={"every": 2})
        rig.play(1)
        assert rig.get("rounds", "1")["reason_detail"] is None
        assert "round.not_evaluated" not in rig.events()


class TestNamesOfTheRecord:
    def test_an_evaluation_overwrites_none_of_them(self, rig: FederationRig) -> None:
        first, second = rig.running(rounds=1, evaluation={"every": 1})
        assert [first.work(), second.work()] == ["train", "train"]
        rig.settle()
        before = rig.get("rounds", "1")
        names = {*RECORDED, *before["metrics"], *RoundResponse.model_fields, "<script>x</script>", "clients "}
        hostile = dict.fromkeys(sorted(names - {"examples"}), 0.5)
        first.evaluation = {**hostile, "loss": 1.0, "accuracy": 0.5}
        second.evaluation = {"loss": 2.0, "accuracy": 1.0}
        assert [first.work(), second.work()] == ["evaluate", "evaluate"]
        rig.settle()
        after = rig.get("rounds", "1")
        assert after["metrics"] == {**before["metrics"], "loss": 1.5, "accuracy": 0.75, "evaluated_by": 2}
        assert (after["upload_bytes"], after["download_bytes"]) == (200, 100)
        assert [row["metrics"] for row in rig.rounds()] == [after["metrics"]]
        (told,) = [event for event in rig.get("events")["items"] if event["type"] == "round.closed"]
        assert set(told["data"]["metrics"]) == set(after["metrics"]) | {"upload_bytes", "download_bytes"}
        kept = [job["metrics"] for job in rig.get("rounds", "1", "jobs")["items"] if job["kind"] == "evaluate"]
        assert any(set(hostile) <= set(metrics) for metrics in kept)

    def test_a_record_that_was_overwritten_before_is_read_with_all_others(self, rig: FederationRig) -> None:
        rig.running(rounds=2)
        rig.play(2)
        with writing() as session:
            session.execute(update(Round).where(Round.number == 1).values(metrics={"upload_bytes": 0.5, "loss": "x"}))
        assert [row["upload_bytes"] for row in rig.rounds()] == [0, 200]
        assert rig.get("rounds", "1")["state"] == "closed"
