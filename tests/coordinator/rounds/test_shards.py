"""Aggregation in shards: rows that are claimed and recorded, and the same bytes as without shards."""

import threading

import pytest

from coordinator.artifacts import service as artifacts
from coordinator.db.sessions import reading, utcnow, writing
from coordinator.models import Shard
from coordinator.queue.wakeups import celery
from coordinator.rounds import conductor, service
from coordinator.rounds.schemas import Failure, Omission
from coordinator.rounds.tasks import aggregate_shard, do
from coordinator.settings import Settings
from federated.payloads.payload import Payload
from tests.support import service as support
from tests.support.federation_rig import B, FederationRig, update_of
from tests.support.queue import take

SHARD_TASK = "rounds.aggregate_shard"


@pytest.fixture
def in_shards(monkeypatch: pytest.MonkeyPatch, rig: FederationRig) -> FederationRig:
    """Every tensor is a shard of its own."""
    monkeypatch.setenv("FEDLOOM_SHARD_BYTES", "1")
    support.forget_settings()
    return rig


def rows() -> list[Shard]:
    """All shards, in order."""
    with reading() as session:
        return list(session.query(Shard).order_by(Shard.round_id, Shard.number))


def collected(rig: FederationRig, **changes: object) -> None:
    """Both clients' updates are in and checked, and the aggregation is cut; the shards' messages wait."""
    for actor, value in zip(rig.running(**changes), (1.0, 3.0), strict=True):
        actor.make_update = lambda instruction, value=value: update_of(value, instruction)
        assert actor.work() == "train"
    held = []
    while (message := take()) is not None:
        if message[0] == SHARD_TASK:
            held.append(message)
        else:
            celery.tasks[message[0]](*message[1])
    assert len(held) == 2


def adapters(rig: FederationRig) -> list[object]:
    """Digests of each round's adapter files and states."""
    return [(row["state_digest"], row["adapter"]["files"]["adapter_model.safetensors"]) for row in rig.rounds()]


class TestShards:
    def test_the_status_counts_them(self, in_shards: FederationRig) -> None:
        collected(in_shards)
        assert in_shards.get("rounds", "1")["waiting_for"] == "aggregating 0/2 shards"
        aggregate_shard(rows()[1].id)
        assert in_shards.get("rounds", "1")["waiting_for"] == "aggregating 1/2 shards"

    def test_the_status_says_that_they_are_joined(self, in_shards: FederationRig) -> None:
        """Nobody does that yet: whoever did the last one died before it."""
        collected(in_shards)
        for row in rows():
            claimed = self._claimed(row.id)
            made = conductor.aggregate_shard(claimed.inputs)
            with writing() as session:
                assert service.record_shard(session, claimed, made, utcnow())
        assert in_shards.get("rounds", "1")["waiting_for"] == "joining_shards"
        assert in_shards.show()["waiting_for"] == "joining_shards"
        in_shards.reconcile()
        assert in_shards.get("rounds", "1")["state"] == "closed"

    def test_one_that_can_only_be_done_without_an_update_has_all_be_done_without_it(
        self, in_shards: FederationRig
    ) -> None:
        collected(in_shards, rounds=1, min_clients=1)
        first, second = (self._claimed(row.id) for row in rows())
        made = conductor.aggregate_shard(second.inputs)
        omission = Omission({1: {"code": "not_finite"}})
        with writing() as session:
            assert service.record_shard(session, first, omission, utcnow())
            assert not service.record_shard(session, second, made, utcnow())
        assert rows() == []
        in_shards.reconcile()
        shown = in_shards.get("rounds", "1")
        assert (shown["state"], shown["accepted"]) == ("closed", [0])
        assert shown["left_out"] == [{"ordinal": 1, "reason": "not_finite"}]
        state = Payload.open(artifacts.whole_file(shown["state_digest"]))
        assert float(state[B].max()) == 1.0

    def test_lost_messages_are_sent_again_by_the_reconciler(self, in_shards: FederationRig) -> None:
        collected(in_shards)
        in_shards.reconcile()
        shown = in_shards.get("rounds", "1")
        assert shown["state"] == "closed"
        assert all(row.made is not None for row in rows()[:2])

    @pytest.mark.parametrize("config", [{"local_steps": 1}, {"local_steps": 1, "server_optimizer": "adam"}])
    def test_the_bytes_are_those_of_the_whole(
        self, rig: FederationRig, monkeypatch: pytest.MonkeyPatch, config: dict[str, object]
    ) -> None:
        made = []
        for shard_bytes in ("1000000", "1"):
            monkeypatch.setenv("FEDLOOM_SHARD_BYTES", shard_bytes)
            support.forget_settings()
            rig.running(config=config)
            rig.play(2)
            assert rig.show()["state"] == "completed"
            assert all(row["not_reproducible"] == [] for row in rig.rounds())
            made.append([adapters(rig), [row["metrics"] for row in rig.rounds()]])
        assert made[0] == made[1]
        assert len(rows()) == 4

    def test_two_at_once_and_one_of_them_goes_on_with_the_round(self, in_shards: FederationRig) -> None:
        collected(in_shards)
        threads = [threading.Thread(target=aggregate_shard, args=(row.id,)) for row in rows() for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        in_shards.reconcile()
        assert in_shards.get("rounds", "1")["state"] == "closed"
        assert [row.version for row in rows()[:2]] == [1, 1]

    def test_what_a_dead_process_claimed_is_done_by_another(
        self, in_shards: FederationRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        collected(in_shards)
        with writing() as session:
            lost = service.claim_shard(session, rows()[0].id, utcnow())
        assert lost is not None
        aggregate_shard(rows()[0].id)  # the claim still holds
        assert rows()[0].made is None
        with writing() as session:
            session.get_one(Shard, rows()[0].id).claimed_until = utcnow()
        in_shards.reconcile()
        assert in_shards.get("rounds", "1")["state"] == "closed"
        assert do(lost) is None  # it comes back and finds that the round went on

    def test_one_that_fails_fails_the_round_with_the_reason(self, in_shards: FederationRig) -> None:
        collected(in_shards)
        claimed = self._claimed(rows()[0].id)
        with writing() as session:
            assert service.record_shard(session, claimed, Failure("algorithm_failed", "shard: no memory"), utcnow())
        shown = in_shards.get("rounds", "1")
        assert (shown["state"], shown["reason"]) == ("failed", "algorithm_failed")
        assert shown["reason_detail"] == "shard: no memory"

    @staticmethod
    def _claimed(shard_id: str) -> service.ShardClaim:
        with writing() as session:
            claimed = service.claim_shard(session, shard_id, utcnow())
        assert claimed is not None
        return claimed

    def test_a_round_that_is_withdrawn_leaves_them(self, in_shards: FederationRig) -> None:
        collected(in_shards)
        claimed = self._claimed(rows()[0].id)
        in_shards.post("pause", now="true")
        assert do(claimed) is None
        assert in_shards.get("rounds", "1")["state"] == "withdrawn"
        in_shards.post("resume")
        assert in_shards.get("rounds", "1")["state"] == "closed"


def test_the_default_cuts_large_states_alone() -> None:
    assert Settings().shard_bytes == 256 * 1024**2
