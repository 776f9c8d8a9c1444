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
from tests.support.federation_rig import FederationRig


def all_submitted(rig: FederationRig) -> str:
    """Both updates are submitted and nobody has looked at them; returns the round's id."""
    for actor in rig.running():
        assert actor.work() == "train"
    rig.drop_messages()
    return str(rig.rounds()[0]["id"])


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
    def test_a_claimed_step_is_given_to_nobody_else_until_the_claim_passes(self, rig: FederationRig) -> None:
        round_id = all_submitted(rig)
        assert claim(round_id) is not None
        assert claim(round_id) is None
        tasks.advance(round_id)
        assert rig.rounds()[0]["state"] == "collecting"
        assert claim(round_id, get_settings().claim_seconds + 1) is not None

    def test_a_renewed_claim_lasts(self, rig: FederationRig) -> None:
        round_id = all_submitted(rig)
        claimed = claim(round_id)
        assert claimed is not None
        later = get_settings().claim_seconds + 1
        with writing() as session:
            assert service.renew(session, claimed, utcnow() + timedelta(seconds=later - 5))
        assert claim(round_id, later) is None

    def test_a_claim_is_renewed_for_as_long_as_the_work_takes(
        self, rig: FederationRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        round_id = all_submitted(rig)
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

    def test_the_loser_of_a_claim_changes_nothing(self, rig: FederationRig) -> None:
        round_id = all_submitted(rig)
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

    def test_a_step_for_a_round_that_was_withdrawn_is_thrown_away(self, rig: FederationRig) -> None:
        round_id = all_submitted(rig)
        claimed, given = claim_aggregate(round_id)
        made = conductor.aggregate(given)
        rig.post("pause", now=True)
        before = everything()
        assert not record(claimed, made)
        assert everything() == before

    def test_a_process_that_died_while_it_computed_is_replaced(self, rig: FederationRig) -> None:
        round_id = all_submitted(rig)
        claim_aggregate(round_id)
        rig.reconcile()
        assert rig.rounds()[0]["state"] == "aggregating"
        with writing() as session:
            session.get_one(Round, round_id).claimed_until = utcnow() - timedelta(seconds=1)
        rig.reconcile()
        assert rig.rounds()[0]["state"] == "closed"


def claimed_until(round_id: str) -> Any:
    with reading() as session:
        return session.get_one(Round, round_id).claimed_until


class TestMessages:
    def test_lost_messages_cost_nothing_but_time(self, rig: FederationRig) -> None:
        first, second = rig.running(rounds=1)
        first.work(), second.work()
        assert rig.drop_messages() > 0
        assert rig.settle() == 0
        assert rig.show()["state"] == "running"
        rig.reconcile()
        assert rig.show()["state"] == "completed"

    def test_doubled_messages_change_nothing(self, rig: FederationRig) -> None:
        rig.running(rounds=1)
        rig.play(1)
        before = everything()
        for row in rig.rounds():
            celery.tasks["rounds.advance"](row["id"])
        celery.tasks["federations.advance"](rig.federation_id)
        celery.tasks["rounds.advance"]("rnd_none")
        celery.tasks["federations.advance"]("fed_none")
        rig.reconcile()
        assert everything() == before

    def test_messages_handled_at_once_do_each_step_once(self, rig: FederationRig) -> None:
        first, second = rig.running(rounds=1)
        first.work(), second.work()
        round_id = rig.rounds()[0]["id"]
        calls = [threading.Thread(target=tasks.advance, args=[round_id]) for _ in range(4)]
        calls += [threading.Thread(target=celery.tasks["federations.advance"], args=[rig.federation_id])]
        for call in calls:
            call.start()
        for call in calls:
            call.join()
        rig.settle()
        rig.reconcile()
        types = rig.events()
        once = ("round.opened", "round.collecting", "round.aggregating", "round.aggregated", "round.closed")
        assert {name: types.count(name) for name in once} == dict.fromkeys(once, 1)
        assert rig.show()["state"] == "completed"

    def test_the_same_round_done_twice_makes_the_same_bytes(self, rig: FederationRig) -> None:
        digests = []
        for _ in range(2):
            rig.running(rounds=2)
            rig.play(2)
            adapter = rig.rounds()[1]["adapter"]
            digests.append((rig.rounds()[1]["state_digest"], adapter["files"]["adapter_model.safetensors"]))
        assert digests[0] == digests[1]

    def test_updates_that_arrive_in_another_order_make_the_same_bytes(self, rig: FederationRig) -> None:
        digests = []
        for order in (1, -1):
            for actor in rig.running(3, clients_per_round=3, rounds=1)[::order]:
                actor.work()
            rig.settle()
            digests.append(rig.rounds()[0]["state_digest"])
        assert digests[0] == digests[1]


class TestTransactions:
    def test_no_transaction_is_open_while_the_conductor_works(self, rig: FederationRig) -> None:
        round_id = all_submitted(rig)
        seen: list[tuple[str, int]] = []

        def watch(frame: FrameType, event: str, argument: object) -> None:
            if event == "call" and frame.f_code.co_filename == conductor.__file__:
                seen.append((frame.f_code.co_name, sessions.engine().pool.checkedout()))  # type: ignore[attr-defined]

        sys.setprofile(watch)
        try:
            tasks.advance(round_id)
            celery.tasks["federations.advance"](rig.federation_id)
        finally:
            sys.setprofile(None)
        assert {"check", "aggregate", "_export", "plan"} <= {name for name, _ in seen}
        assert {checked_out for _, checked_out in seen} == {0}

    def test_what_a_step_made_is_in_the_store_before_it_is_recorded(self, rig: FederationRig) -> None:
        _, given = claim_aggregate(all_submitted(rig))
        made = conductor.aggregate(given)
        with reading() as session:
            assert session.get(Artifact, made.state.state.digest) is None
        assert conductor.aggregate(given) == made
