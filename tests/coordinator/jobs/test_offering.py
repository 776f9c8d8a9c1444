"""Offers, judgments and withdrawals of jobs, over real sessions."""

from collections.abc import Callable
from contextlib import closing

import pytest

from coordinator.db.sessions import reading, utcnow, writing
from coordinator.errors import Conflict
from coordinator.jobs import repository
from coordinator.jobs import service as jobs
from coordinator.models import Client, Federation, Grant, Job, Round
from coordinator.models.base import new_id
from coordinator.queue.wakeups import ADVANCE_ROUND
from tests.coordinator.clients import scene
from tests.coordinator.jobs.stage import BOOT, Stage, train_body
from tests.support.queue import queued

MEMORY = "sha256:" + "5" * 64


def told(count: int, do: Callable[[], object]) -> list[str]:
    """The texts of that many notices of offers, of those that came of it."""
    connection = jobs.subscribe_to_offers()
    assert connection is not None
    with closing(connection):
        do()
        return [notice.payload for notice in connection.notifies(timeout=10, stop_after=count)]


def submitted(stage: Stage, memory_digest: str | None = MEMORY) -> str:
    """The id of a train job whose result came in."""
    job_id = stage.leased()
    with writing() as session:
        job = session.get_one(Job, job_id)
        job.state, job.submission = "submitted", train_body(MEMORY, memory_digest=memory_digest)
    return job_id


class TestOffer:
    def test_the_worker_may_read_the_instruction(self, stage: Stage) -> None:
        job = stage.job(stage.offer())
        with reading() as session:
            assert session.get(Grant, (job.instruction_digest, stage.worker_id)) is not None

    def test_the_same_job_offered_twice_is_one(self, stage: Stage) -> None:
        assert stage.offer() == stage.offer()
        assert stage.offer("describe") == stage.offer("describe")
        assert stage.jobs() == [("offered", 1), ("offered", 1)]

    def test_a_client_is_asked_to_describe_itself_again_after_the_last_time_ended(self, stage: Stage) -> None:
        first = stage.offer("describe")
        with writing() as session:
            jobs.withdraw_open(session, client_id=stage.client_id, reason="test", now=utcnow())
        assert stage.offer("describe") != first

    def test_numbers_of_offers_grow_also_after_the_newest_was_deleted(self, stage: Stage) -> None:
        first = stage.job(stage.offer()).offered_number
        with writing() as session:
            session.delete(session.get_one(Job, stage.job(stage.offer()).id))
        assert stage.job(stage.offer()).offered_number > first

    def test_a_client_whose_update_was_rejected_is_not_asked_again_in_that_round(self, stage: Stage) -> None:
        job_id = submitted(stage)
        with writing() as session:
            jobs.reject(session, session.get_one(Job, job_id), {"code": "not_finite"}, utcnow())
            federation = session.get_one(Federation, stage.federation_id)
            same = scene.open_round(session, federation, attempt=2).id
            following = scene.open_round(session, federation, number=2).id
        with pytest.raises(Conflict) as refusal:
            stage.offer(round_id=same)
        assert refusal.value.code == "rejected_before"
        assert stage.offer(round_id=following) != job_id


class TestAccept:
    def test_the_memory_of_an_accepted_update_is_where_the_next_job_starts(self, stage: Stage) -> None:
        job_id = submitted(stage)
        with writing() as session:
            jobs.accept(session, session.get_one(Job, job_id), utcnow())
        client = stage.client()
        assert (client.memory_round, client.memory_digest, client.rounds_taken) == (1, MEMORY, 1)
        stage.offer("evaluate")
        lease = stage.lease()
        assert lease is not None
        assert lease.memory is not None
        assert (lease.memory.round_number, lease.memory.digest) == (1, MEMORY)

    def test_an_update_without_memory_forgets_the_earlier_one(self, stage: Stage) -> None:
        with writing() as session:
            client = session.get_one(Client, stage.client_id)
            client.memory_round, client.memory_digest = 1, MEMORY
        job_id = submitted(stage, memory_digest=None)
        with writing() as session:
            jobs.accept(session, session.get_one(Job, job_id), utcnow())
        assert (stage.client().memory_round, stage.client().memory_digest) == (None, None)

    def test_a_preparation_is_no_round_taken(self, stage: Stage) -> None:
        with writing() as session:
            session.get_one(Round, stage.round_id).kind = "prepare"
        job_id = submitted(stage)
        with writing() as session:
            jobs.accept(session, session.get_one(Job, job_id), utcnow())
        assert (stage.client().memory_digest, stage.client().rounds_taken) == (MEMORY, 0)

    def test_a_rejected_update_changes_nothing_but_its_job(self, stage: Stage) -> None:
        job_id = submitted(stage)
        problem = {"code": "not_finite", "tensor": "a.lora_A.weight"}
        with writing() as session:
            jobs.reject(session, session.get_one(Job, job_id), problem, utcnow())
        assert (stage.job(job_id).state, stage.job(job_id).problem) == ("rejected", problem)
        assert (stage.client().memory_round, stage.client().rounds_taken) == (None, 0)
        assert scene.events_of(stage.federation_id) == ["job.rejected"]

    def test_a_job_that_was_not_submitted_is_not_accepted(self, stage: Stage) -> None:
        job_id = stage.leased()
        with pytest.raises(Conflict) as refusal, writing() as session:
            jobs.accept(session, session.get_one(Job, job_id), utcnow())
        assert refusal.value.code == "illegal_transition"


class TestWithdraw:
    def test_what_is_open_is_taken_back_and_what_has_ended_stays(self, stage: Stage) -> None:
        job_id = submitted(stage)
        stage.offer("evaluate")
        with writing() as session:
            jobs.accept(session, session.get_one(Job, job_id), utcnow())
            assert jobs.withdraw_open(session, round_id=stage.round_id, reason="round_closed", now=utcnow()) == 1
        assert stage.jobs() == [("accepted", 1), ("withdrawn", 1)]

    def test_one_kind_alone_may_be_taken_back(self, stage: Stage) -> None:
        stage.offer("train")
        stage.offer("evaluate")
        with writing() as session:
            jobs.withdraw_open(session, round_id=stage.round_id, kind="train", reason="round_closed", now=utcnow())
        assert stage.jobs() == [("withdrawn", 1), ("offered", 1)]

    def test_not_all_jobs_there_are_are_taken_back_by_accident(self, stage: Stage) -> None:
        with pytest.raises(ValueError, match="name the round"), writing() as session:
            jobs.withdraw_open(session, kind="train", reason="round_closed", now=utcnow())

    @pytest.mark.parametrize("state", ["out", "left", "expelled"])
    def test_jobs_of_clients_that_are_gone_are_taken_back_and_their_round_woken(
        self, stage: Stage, state: str
    ) -> None:
        stage.offer()
        stage.offer(client_id=stage.another_client("b"))
        with writing() as session:
            session.get_one(Client, stage.client_id).state = state
        with writing() as session:
            assert jobs.withdraw_gone(session, utcnow()) == 1
        assert stage.jobs() == [("withdrawn", 1), ("offered", 1)]
        assert queued(ADVANCE_ROUND) == [[stage.round_id]]

    def test_of_one_federation_alone_if_it_is_named(self, stage: Stage) -> None:
        stage.offer()
        with writing() as session:
            session.get_one(Client, stage.client_id).state = "left"
            assert jobs.withdraw_gone(session, utcnow(), "fed_another") == 0
            assert jobs.withdraw_gone(session, utcnow(), stage.federation_id) == 1


def test_the_answers_for_many_jobs_say_what_each_one_says(stage: Stage) -> None:
    ids = [stage.offer("train"), stage.offer("describe")]
    with reading() as session:
        answers = jobs.to_responses(session, [session.get_one(Job, job_id) for job_id in ids])
        assert [job.id for job in jobs.of_round(session, stage.round_id)] == ids[:1]
    assert [(answer.id, answer.kind, answer.ordinal, answer.round_number) for answer in answers] == [
        (ids[0], "train", 0, 1),
        (ids[1], "describe", 0, None),
    ]


@pytest.mark.engines
class TestTelling:
    """What PostgreSQL tells those who wait."""

    def test_an_offer_is_told_with_its_worker(self, stage: Stage) -> None:
        assert told(1, stage.offer) == [stage.worker_id]

    def test_a_job_that_is_offered_again_is_told(self, stage: Stage) -> None:
        job_id = stage.leased()

        def hand_back() -> None:
            with writing() as session:
                jobs.hand_back(session, job_id, BOOT, utcnow())

        assert told(1, hand_back) == [stage.worker_id]

    def test_an_offer_that_was_made_before_is_not_told_again(self, stage: Stage) -> None:
        stage.offer()

        def offer_twice() -> None:
            stage.offer()
            stage.offer(client_id=stage.another_client("b"))

        assert told(1, offer_twice) == [stage.worker_id]

    def test_a_large_cohort_is_told_in_several_notices(self, stage: Stage) -> None:
        workers = [new_id("wkr") for _ in range(1000)]

        def tell() -> None:
            with writing() as session:
                repository.notify_offers(session, workers)

        texts = told(5, tell)
        assert " ".join(texts).split() == workers
