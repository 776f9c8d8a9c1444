"""Claims: one step at a time, losers, lost and doubled messages, and no transaction while the conductor computes."""

import sys
import threading
from datetime import timedelta
from types import FrameType
from typing import Any

import pytest

from coordinator.db import sessions
from coordinator.db.sessions import reading, utcnow, writing
from coordinator.models import Artifact, Round
from coordinator.queue.wakeups import celery
from coordinator.rounds import conductor, service, steps, tasks
from coordinator.rounds.schemas import AggregateInput, AggregateResult, Failure
from coordinator.rounds.service import Claim
from coordinator.settings import get_settings
from tests.coordinator.clients.scene import everything
from tests.support.stage import Stage


def all_submitted(stage: Stage) -> str:
    """Both updates are submitted and nobody has looked at them; returns the round's id."""
    for actor in stage.running():
        assert actor.work() == "train"
    stage.drop_messages()
    return str(stage.rounds()[0]["id"])


def claim(round_id: str, later_seconds: float = 0) -> Claim | None:
    with writing() as session:
        return steps.claim(session, round_id, utcnow() + timedelta(seconds=later_seconds))


def claim_aggregate(round_id: str) -> tuple[Claim, AggregateInput]:
    """Checks what was submitted, then claims the aggregation."""
    claimed = claim(round_id)
    assert claimed is not None
    following = tasks.do(claimed)
    assert following is not None
    assert isinstance(following.inputs, AggregateInput)
    return following, following.inputs


def record(claimed: Claim, made: AggregateResult) -> bool:
    with writing() as session:
        return steps.record(session, claimed, made, utcnow())


class TestAClaim:
    def test_a_claimed_step_is_given_to_nobody_else_until_the_claim_passes(self, stage: Stage) -> None:
        round_id = all_submitted(stage)
        assert claim(round_id) is not None
        assert claim(round_id) is None
        tasks.advance(round_id)
        assert stage.rounds()[0]["state"] == "collecting"
        assert claim(round_id, get_settings().claim_seconds + 1) is not None

    def test_a_renewed_claim_lasts(self, stage: Stage) -> None:
        round_id = all_submitted(stage)
        claimed = claim(round_id)
        assert claimed is not None
        later = get_settings().claim_seconds + 1
        with writing() as session:
            assert service.renew(session, claimed, utcnow() + timedelta(seconds=later - 5))
        assert claim(round_id, later) is None

    def test_a_claim_is_renewed_for_as_long_as_the_work_takes(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        round_id = all_submitted(stage)
        monkeypatch.setenv("FEDLOOM_CLAIM_SECONDS", "0.3")
        get_settings.cache_clear()
        claimed = claim(round_id)
        assert claimed is not None
        renewed = threading.Event()
        first = claimed_until(round_id)
        with tasks.renewal(claimed):
            while not renewed.wait(0.05):
                if claimed_until(round_id) > first + timedelta(seconds=0.3):
                    renewed.set()
        assert tasks.do(claimed) is not None

    def test_the_loser_of_a_claim_changes_nothing(self, stage: Stage) -> None:
        round_id = all_submitted(stage)
        slow, given = claim_aggregate(round_id)
        fast = claim(round_id, get_settings().claim_seconds + 1)
        assert fast is not None
        made = conductor.aggregate(given)
        assert record(fast, made)
        before = everything()
        assert not record(slow, made)
        with writing() as session:
            assert not service.fail(session, slow, Failure("algorithm_failed", "too late"), utcnow())
            assert not service.renew(session, slow, utcnow())
        assert everything() == before

    def test_a_step_for_a_round_that_was_withdrawn_is_thrown_away(self, stage: Stage) -> None:
        round_id = all_submitted(stage)
        claimed, given = claim_aggregate(round_id)
        made = conductor.aggregate(given)
        stage.post("pause", now=True)
        before = everything()
        assert not record(claimed, made)
        assert everything() == before

    def test_a_process_that_died_while_it_computed_is_replaced(self, stage: Stage) -> None:
        round_id = all_submitted(stage)
        claim_aggregate(round_id)
        stage.reconcile()
        assert stage.rounds()[0]["state"] == "aggregating"
        with writing() as session:
            session.get_one(Round, round_id).claimed_until = utcnow() - timedelta(seconds=1)
        stage.reconcile()
        assert stage.rounds()[0]["state"] == "closed"


def claimed_until(round_id: str) -> Any:
    with reading() as session:
        return session.get_one(Round, round_id).claimed_until


class TestMessages:
    def test_lost_messages_cost_nothing_but_time(self, stage: Stage) -> None:
        first, second = stage.running(rounds=1)
        first.work(), second.work()
        assert stage.drop_messages() > 0
        assert stage.settle() == 0
        assert stage.show()["state"] == "running"
        stage.reconcile()
        assert stage.show()["state"] == "completed"

    def test_doubled_messages_change_nothing(self, stage: Stage) -> None:
        stage.running(rounds=1)
        stage.play(1)
        before = everything()
        for row in stage.rounds():
            celery.tasks["rounds.advance"](row["id"])
        celery.tasks["federations.advance"](stage.federation_id)
        celery.tasks["rounds.advance"]("rnd_none")
        celery.tasks["federations.advance"]("fed_none")
        stage.reconcile()
        assert everything() == before

    def test_messages_handled_at_once_do_each_step_once(self, stage: Stage) -> None:
        first, second = stage.running(rounds=1)
        first.work(), second.work()
        round_id = stage.rounds()[0]["id"]
        calls = [threading.Thread(target=tasks.advance, args=[round_id]) for _ in range(4)]
        calls += [threading.Thread(target=celery.tasks["federations.advance"], args=[stage.federation_id])]
        for call in calls:
            call.start()
        for call in calls:
            call.join()
        stage.settle()
        stage.reconcile()
        types = stage.events()
        once = ("round.opened", "round.collecting", "round.aggregating", "round.aggregated", "round.closed")
        assert {name: types.count(name) for name in once} == dict.fromkeys(once, 1)
        assert stage.show()["state"] == "completed"

    def test_the_same_round_done_twice_makes_the_same_bytes(self, stage: Stage) -> None:
        digests = []
        for _ in range(2):
            stage.running(rounds=2)
            stage.play(2)
            adapter = stage.rounds()[1]["adapter"]
            digests.append((stage.rounds()[1]["state_digest"], adapter["files"]["adapter_model.safetensors"]))
        assert digests[0] == digests[1]

    def test_updates_that_arrive_in_another_order_make_the_same_bytes(self, stage: Stage) -> None:
        digests = []
        for order in (1, -1):
            for actor in stage.running(3, clients_per_round=3, rounds=1)[::order]:
                actor.work()
            stage.settle()
            digests.append(stage.rounds()[0]["state_digest"])
        assert digests[0] == digests[1]


class TestTransactions:
    def test_no_transaction_is_open_while_the_conductor_works(self, stage: Stage) -> None:
        round_id = all_submitted(stage)
        seen: list[tuple[str, int]] = []

        def watch(frame: FrameType, event: str, argument: object) -> None:
            if event == "call" and frame.f_code.co_filename == conductor.__file__:
                seen.append((frame.f_code.co_name, sessions.engine().pool.checkedout()))  # type: ignore[attr-defined]

        sys.setprofile(watch)
        try:
            tasks.advance(round_id)
            celery.tasks["federations.advance"](stage.federation_id)
        finally:
            sys.setprofile(None)
        assert {"check", "aggregate", "_export", "plan"} <= {name for name, _ in seen}
        assert {checked_out for _, checked_out in seen} == {0}

    def test_what_a_step_made_is_in_the_store_before_it_is_recorded(self, stage: Stage) -> None:
        _, given = claim_aggregate(all_submitted(stage))
        made = conductor.aggregate(given)
        with reading() as session:
            assert session.get(Artifact, made.state.state.digest) is None
        assert conductor.aggregate(given) == made
