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
from tests.coordinator.jobs.job_rig import BOOT, JobRig, train_body
from tests.support.queue import queued

MEMORY = "sha256:" + "5" * 64


def told(count: int, do: Callable[[], object]) -> list[str]:
    """The texts of that many notices of offers, of those that came of it."""
    connection = jobs.subscribe_to_offers()
    assert connection is not None
    with closing(connection):
        do()
        return [notice.payload for notice in connection.notifies(timeout=10, stop_after=count)]


def submitted(rig: JobRig, memory_digest: str | None = MEMORY) -> str:
    """The id of a train job whose result came in."""
    job_id = rig.leased()
    with writing() as session:
        job = session.get_one(Job, job_id)
        job.state, job.submission = "submitted", train_body(MEMORY, memory_digest=memory_digest)
    return job_id


class TestOffer:
    def test_the_worker_may_read_the_instruction(self, rig: JobRig) -> None:
        job = rig.job(rig.offer())
        with reading() as session:
            assert session.get(Grant, (job.instruction_digest, rig.worker_id)) is not None

    def test_the_same_job_offered_twice_is_one(self, rig: JobRig) -> None:
        assert rig.offer() == rig.offer()
        assert rig.offer("describe") == rig.offer("describe")
        assert rig.jobs() == [("offered", 1), ("offered", 1)]

    def test_a_client_is_asked_to_describe_itself_again_after_the_last_time_ended(self, rig: JobRig) -> None:
        first = rig.offer("describe")
        with writing() as session:
            jobs.withdraw_open(session, client_id=rig.client_id, reason="test", now=utcnow())
        assert rig.offer("describe") != first

    def test_numbers_of_offers_grow_also_after_the_newest_was_deleted(self, rig: JobRig) -> None:
        first = rig.job(rig.offer()).offered_number
        with writing() as session:
            session.delete(session.get_one(Job, rig.job(rig.offer()).id))
        assert rig.job(rig.offer()).offered_number > first

    def test_a_client_whose_update_was_rejected_is_not_asked_again_in_that_round(self, rig: JobRig) -> None:
        job_id = submitted(rig)
        with writing() as session:
            jobs.reject(session, session.get_one(Job, job_id), {"code": "not_finite"}, utcnow())
            federation = session.get_one(Federation, rig.federation_id)
            same = scene.open_round(session, federation, attempt=2).id
            following = scene.open_round(session, federation, number=2).id
        with pytest.raises(Conflict) as refusal:
            rig.offer(round_id=same)
        assert refusal.value.code == "rejected_before"
        assert rig.offer(round_id=following) != job_id


class TestAccept:
    def test_the_memory_of_an_accepted_update_is_where_the_next_job_starts(self, rig: JobRig) -> None:
        job_id = submitted(rig)
        with writing() as session:
            jobs.accept(session, session.get_one(Job, job_id), utcnow())
        client = rig.client()
        assert (client.memory_round, client.memory_digest, client.rounds_taken) == (1, MEMORY, 1)
        rig.offer("evaluate")
        lease = rig.lease()
        assert lease is not None
        assert lease.memory is not None
        assert (lease.memory.round_number, lease.memory.digest) == (1, MEMORY)

    def test_an_update_without_memory_forgets_the_earlier_one(self, rig: JobRig) -> None:
        with writing() as session:
            client = session.get_one(Client, rig.client_id)
            client.memory_round, client.memory_digest = 1, MEMORY
        job_id = submitted(rig, memory_digest=None)
        with writing() as session:
            jobs.accept(session, session.get_one(Job, job_id), utcnow())
        assert (rig.client().memory_round, rig.client().memory_digest) == (None, None)

    def test_a_preparation_is_no_round_taken(self, rig: JobRig) -> None:
        with writing() as session:
            session.get_one(Round, rig.round_id).kind = "prepare"
        job_id = submitted(rig)
        with writing() as session:
            jobs.accept(session, session.get_one(Job, job_id), utcnow())
        assert (rig.client().memory_digest, rig.client().rounds_taken) == (MEMORY, 0)

    def test_a_rejected_update_changes_nothing_but_its_job(self, rig: JobRig) -> None:
        job_id = submitted(rig)
        problem = {"code": "not_finite", "tensor": "a.lora_A.weight"}
        with writing() as session:
            jobs.reject(session, session.get_one(Job, job_id), problem, utcnow())
        assert (rig.job(job_id).state, rig.job(job_id).problem) == ("rejected", problem)
        assert (rig.client().memory_round, rig.client().rounds_taken) == (None, 0)
        assert scene.events_of(rig.federation_id) == ["job.rejected"]

    def test_a_job_that_was_not_submitted_is_not_accepted(self, rig: JobRig) -> None:
        job_id = rig.leased()
        with pytest.raises(Conflict) as refusal, writing() as session:
            jobs.accept(session, session.get_one(Job, job_id), utcnow())
        assert refusal.value.code == "illegal_transition"


class TestWithdraw:
    def test_what_is_open_is_taken_back_and_what_has_ended_stays(self, rig: JobRig) -> None:
        job_id = submitted(rig)
        rig.offer("evaluate")
        with writing() as session:
            jobs.accept(session, session.get_one(Job, job_id), utcnow())
            assert jobs.withdraw_open(session, round_id=rig.round_id, reason="round_closed", now=utcnow()) == 1
        assert rig.jobs() == [("accepted", 1), ("withdrawn", 1)]

    def test_one_kind_alone_may_be_taken_back(self, rig: JobRig) -> None:
        rig.offer("train")
        rig.offer("evaluate")
        with writing() as session:
            jobs.withdraw_open(session, round_id=rig.round_id, kind="train", reason="round_closed", now=utcnow())
        assert rig.jobs() == [("withdrawn", 1), ("offered", 1)]

    def test_not_all_jobs_there_are_are_taken_back_by_accident(self, rig: JobRig) -> None:
        with pytest.raises(ValueError, match="name the round"), writing() as session:
            jobs.withdraw_open(session, kind="train", reason="round_closed", now=utcnow())

    @pytest.mark.parametrize("state", ["out", "left", "expelled"])
    def test_jobs_of_clients_that_are_gone_are_taken_back_and_their_round_woken(
        self, rig: JobRig, state: str
    ) -> None:
        rig.offer()
        rig.offer(client_id=rig.another_client("b"))
        with writing() as session:
            session.get_one(Client, rig.client_id).state = state
        with writing() as session:
            assert jobs.withdraw_gone(session, utcnow()) == 1
        assert rig.jobs() == [("withdrawn", 1), ("offered", 1)]
        assert queued(ADVANCE_ROUND) == [[rig.round_id]]

    def test_of_one_federation_alone_if_it_is_named(self, rig: JobRig) -> None:
        rig.offer()
        with writing() as session:
            session.get_one(Client, rig.client_id).state = "left"
            assert jobs.withdraw_gone(session, utcnow(), "fed_another") == 0
            assert jobs.withdraw_gone(session, utcnow(), rig.federation_id) == 1


def test_the_answers_for_many_jobs_say_what_each_one_says(rig: JobRig) -> None:
    ids = [rig.offer("train"), rig.offer("describe")]
    with reading() as session:
        answers = jobs.to_responses(session, [session.get_one(Job, job_id) for job_id in ids])
        assert [job.id for job in jobs.of_round(session, rig.round_id)] == ids[:1]
    assert [(answer.id, answer.kind, answer.ordinal, answer.round_number) for answer in answers] == [
        (ids[0], "train", 0, 1),
        (ids[1], "describe", 0, None),
    ]


@pytest.mark.engines
class TestTelling:
    """What PostgreSQL tells those who wait."""

    def test_an_offer_is_told_with_its_worker(self, rig: JobRig) -> None:
        assert told(1, rig.offer) == [rig.worker_id]

    def test_a_job_that_is_offered_again_is_told(self, rig: JobRig) -> None:
        job_id = rig.leased()

        def hand_back() -> None:
            with writing() as session:
                jobs.hand_back(session, job_id, BOOT, utcnow())

        assert told(1, hand_back) == [rig.worker_id]

    def test_an_offer_that_was_made_before_is_not_told_again(self, rig: JobRig) -> None:
        rig.offer()

        def offer_twice() -> None:
            rig.offer()
            rig.offer(client_id=rig.another_client("b"))

        assert told(1, offer_twice) == [rig.worker_id]

    def test_a_large_cohort_is_told_in_several_notices(self, rig: JobRig) -> None:
        workers = [new_id("wkr") for _ in range(1000)]

        def tell() -> None:
            with writing() as session:
                repository.notify_offers(session, workers)

        texts = told(5, tell)
        assert " ".join(texts).split() == workers
