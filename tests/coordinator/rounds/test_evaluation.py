"""Evaluation after a round: the clients that evaluate, the metrics that count, and failures that harm nothing."""

from typing import Any

from sqlalchemy import update

from coordinator.db.sessions import writing
from coordinator.models import Round
from coordinator.rounds.schemas import RoundResponse
from tests.support.service import problem
from tests.support.stage import Stage

# What a round counts itself, and what an algorithm's server half measures.
RECORDED = ("train_loss", "clients", "examples", "upload_bytes", "download_bytes", "evaluated_by", "own_loss")


class TestEvaluation:
    def test_the_adapter_is_there_before_the_metrics_and_means_are_weighted(self, stage: Stage) -> None:
        first, second = stage.running(rounds=1, evaluation={"every": 1})
        first.evaluation, second.evaluation = {"loss": 1.0, "accuracy": 0.5}, {"loss": 2.0, "accuracy": 1.0}
        first.evaluation_examples, second.evaluation_examples = 3, 1
        assert [first.work(), second.work()] == ["train", "train"]
        stage.settle()
        opened = stage.get("rounds", "1")
        assert opened["state"] == "evaluating"
        assert opened["waiting_for"].startswith("evaluating 0/2, ")
        assert stage.owner.owner.get(stage.path("adapter")).status_code == 200
        assert [first.work(), second.work()] == ["evaluate", "evaluate"]
        stage.settle()
        closed = stage.get("rounds", "1")
        assert closed["state"] == "closed"
        assert closed["metrics"] == {
            "train_loss": 0.25, "clients": 2, "examples": 30, "loss": 1.25, "accuracy": 0.625, "evaluated_by": 2,
        }  # fmt: skip
        assert "evaluating" in closed["seconds"]

    def test_only_due_rounds_and_the_last_are_evaluated(self, stage: Stage) -> None:
        stage.running(rounds=3, evaluation={"every": 2})
        stage.play(3)
        assert ["loss" in row["metrics"] for row in stage.rounds()] == [False, True, True]

    def test_a_client_that_only_evaluates_is_never_drawn_and_always_asked(self, stage: Stage) -> None:
        stage.create(rounds=1, evaluation={"every": 1})
        first, second = (stage.join(stage.actor()) for _ in range(2))
        judge = stage.join(stage.actor(), evaluates_only=True)
        stage.post("start")
        assert [actor.work() for actor in (first, second, judge)] == ["describe"] * 3
        stage.settle()
        assert stage.get("rounds", "1")["cohort"] == [0, 1]
        assert [actor.work() for actor in (first, second, judge)] == ["train", "train", None]
        stage.settle()
        assert [actor.work() for actor in (first, second, judge)] == ["evaluate"] * 3
        stage.settle()
        assert stage.get("rounds", "1")["metrics"]["evaluated_by"] == 3

    def test_all_means_also_those_that_were_not_drawn(self, stage: Stage) -> None:
        actors = stage.running(3, rounds=1, evaluation={"every": 1, "who": "all"})
        for actor in actors:
            actor.work()
        stage.settle()
        assert [actor.work() for actor in actors] == ["evaluate"] * 3

    def test_answers_that_fail_or_do_not_come_fail_nothing(self, stage: Stage) -> None:
        first, second = stage.running(rounds=1, evaluation={"every": 1}, evaluation_deadline_seconds=1.0)
        first.work(), second.work()
        stage.settle()
        lease = first.lease()
        assert lease is not None
        failed = {"boot_id": first.worker.boot_id, "code": "data_empty", "detail": "", "transient": False}
        first.http.post(f"/v1/jobs/{lease['job_id']}/fail", json=failed).raise_for_status()
        late = second.lease()
        while stage.show()["state"] == "running":
            stage.reconcile()
        assert late is not None
        problem(second.submit(late), 409, "round_closed")
        closed = stage.get("rounds", "1")
        assert (closed["state"], "loss" in closed["metrics"]) == ("closed", False)

    def test_a_target_ends_the_federation(self, stage: Stage) -> None:
        stage.running(rounds=9, evaluation={"every": 1}, stopping={"metric": "accuracy", "target": 0.7})
        stage.play(1)
        assert (stage.show()["state"], stage.show()["reason"]) == ("completed", "stopped_target")


class TestNothingMeasured:
    """What was asked for and cannot come is told, by the round, an event and the federation's end."""

    def told(self, stage: Stage) -> dict[str, Any]:
        (event,) = [event["data"] for event in stage.get("events")["items"] if event["type"] == "round.not_evaluated"]
        assert stage.get("rounds", "1")["reason_detail"].endswith(f"not evaluated: {event['detail']}")
        return event

    def test_no_client_has_held_out_rows(self, stage: Stage) -> None:
        stopping = {"metric": "accuracy", "patience": 1}
        stage.create(rounds=1, evaluation={"every": 1}, stopping=stopping)
        for _ in range(2):
            stage.join(stage.actor(evaluation_examples=0))
        stage.post("start")
        stage.play(1)
        told = self.told(stage)
        assert (told["detail"], told["metric"]) == ("no client has enough held-out examples", "accuracy")
        shown = stage.show()
        assert (shown["state"], shown["reason"]) == ("completed", "stopped_rounds")
        assert shown["reason_detail"].startswith("No round measured 'accuracy'")

    def test_nobody_that_was_asked_answers(self, stage: Stage) -> None:
        first, second = stage.running(rounds=1, evaluation={"every": 1})
        assert [first.work(), second.work()] == ["train", "train"]
        stage.settle()
        for actor in (first, second):
            lease = actor.lease()
            assert lease is not None
            failed = {"boot_id": actor.worker.boot_id, "code": "data_missing", "transient": False}
            actor.http.post(f"/v1/jobs/{lease['job_id']}/fail", json=failed).raise_for_status()
        stage.settle()
        assert self.told(stage)["detail"] == "no metrics came of 2 clients; 2 of them: data_missing"
        assert stage.show()["reason_detail"] is None

    def test_the_answers_have_not_what_the_stopping_rule_waits_for(self, stage: Stage) -> None:
        actors = stage.running(rounds=1, evaluation={"every": 1}, stopping={"metric": "accuracy", "target": 0.5})
        for actor in actors:
            actor.evaluation = {"loss": 1.0}
        stage.play(1)
        assert self.told(stage)["detail"] == "no client reported 'accuracy'"

    def test_a_round_that_is_not_to_be_evaluated_says_nothing(self, stage: Stage) -> None:
        stage.running(rounds=2, evaluation={"every": 2})
        stage.play(1)
        assert stage.get("rounds", "1")["reason_detail"] is None
        assert "round.not_evaluated" not in stage.events()


class TestNamesOfTheRecord:
    def test_an_evaluation_overwrites_none_of_them(self, stage: Stage) -> None:
        first, second = stage.running(rounds=1, evaluation={"every": 1})
        assert [first.work(), second.work()] == ["train", "train"]
        stage.settle()
        before = stage.get("rounds", "1")
        names = {*RECORDED, *before["metrics"], *RoundResponse.model_fields, "<script>x</script>", "clients "}
        hostile = dict.fromkeys(sorted(names - {"examples"}), 0.5)
        first.evaluation = {**hostile, "loss": 1.0, "accuracy": 0.5}
        second.evaluation = {"loss": 2.0, "accuracy": 1.0}
        assert [first.work(), second.work()] == ["evaluate", "evaluate"]
        stage.settle()
        after = stage.get("rounds", "1")
        assert after["metrics"] == {**before["metrics"], "loss": 1.5, "accuracy": 0.75, "evaluated_by": 2}
        assert (after["upload_bytes"], after["download_bytes"]) == (200, 100)
        assert [row["metrics"] for row in stage.rounds()] == [after["metrics"]]
        (told,) = [event for event in stage.get("events")["items"] if event["type"] == "round.closed"]
        assert set(told["data"]["metrics"]) == set(after["metrics"]) | {"upload_bytes", "download_bytes"}
        kept = [job["metrics"] for job in stage.get("rounds", "1", "jobs")["items"] if job["kind"] == "evaluate"]
        assert any(set(hostile) <= set(metrics) for metrics in kept)

    def test_a_record_that_was_overwritten_before_is_read_with_all_others(self, stage: Stage) -> None:
        stage.running(rounds=2)
        stage.play(2)
        with writing() as session:
            session.execute(update(Round).where(Round.number == 1).values(metrics={"upload_bytes": 0.5, "loss": "x"}))
        assert [row["upload_bytes"] for row in stage.rounds()] == [0, 200]
        assert stage.get("rounds", "1")["state"] == "closed"
