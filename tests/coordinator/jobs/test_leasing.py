"""Leases over real sessions: the worker that gets a job, the duration, and the end of a lost lease."""

from datetime import timedelta
from pathlib import Path

from coordinator.db.sessions import reading, utcnow, writing
from coordinator.errors import Conflict, NotFound
from coordinator.jobs import service as jobs
from coordinator.models import Client, Federation, Job, Worker
from coordinator.queue.wakeups import ADVANCE_FEDERATION, ADVANCE_ROUND
from federated.protocol import (
    Capabilities,
    JobProgress,
    RenewRequest,
    RenewResponse,
)
from tests.coordinator.clients import scene
from tests.coordinator.jobs.job_rig import BOOT, LATER_BOOT, JobRig, set_up
from tests.support.queue import queued


class TestLease:
    def test_a_lease_says_all_that_the_worker_needs(self, rig: JobRig) -> None:
        job_id = rig.offer()
        lease = rig.lease()
        assert lease is not None
        assert (lease.job_id, lease.kind, lease.attempt, lease.ordinal, lease.dataset) == (
            job_id, "train", 1, 0, "tickets",
        )  # fmt: skip
        assert (lease.round_number, lease.round_kind, lease.seed, lease.views) == (1, "train", 11, ("shared",))
        assert (lease.work.algorithm, lease.work.federation_seed, lease.work.rounds) == ("fedavg", 7, 3)
        assert lease.instruction is not None
        assert lease.instruction.digest == rig.job(job_id).instruction_digest
        assert lease.memory is None
        assert rig.job(job_id).state == "leased"

    def test_without_an_offer_there_is_none(self, rig: JobRig) -> None:
        assert rig.lease() is None

    def test_offers_are_leased_in_their_order(self, data_folder: Path) -> None:
        rig = set_up(data_folder, slots=3)
        offered = [rig.offer(client_id=client) for client in (rig.another_client("b"), rig.another_client("a"))]
        assert [lease.job_id for lease in (rig.lease(), rig.lease()) if lease] == offered

    def test_a_worker_leases_no_more_jobs_than_it_has_slots(self, rig: JobRig) -> None:
        job_id = rig.leased()
        rig.offer(client_id=rig.another_client("b"))
        rig.renew(job_id, now=utcnow() + timedelta(seconds=1))
        assert rig.lease() is None
        assert rig.jobs() == [("leased", 1), ("offered", 1)]

    def test_calls_of_one_moment_do_not_share_a_job(self, data_folder: Path) -> None:
        """One worker with two slots, one with one, one that nobody knows: asked for in one transaction."""
        rig = set_up(data_folder, slots=2)
        with reading() as session:
            owner = session.get_one(Worker, rig.worker_id).organization_id
        other = set_up(data_folder, owner)
        offered = [rig.offer(client_id=client) for client in map(rig.another_client, "abc")]
        for_other = other.offer()
        calls = [(rig.worker_id, BOOT)] * 3 + [(other.worker_id, BOOT), ("wkr_unknown", BOOT)]
        with writing() as session:
            leases = jobs.lease(session, calls, utcnow())
        got = [lease and lease.job_id for lease in leases]
        assert got == [*offered[:2], None, for_other, None]
        assert rig.job(offered[2]).state == "offered"

    def test_a_job_that_an_earlier_life_had_leased_is_offered_again_at_once(self, rig: JobRig) -> None:
        job_id = rig.leased()
        lease = rig.lease(LATER_BOOT)
        assert lease is not None
        assert (lease.job_id, lease.attempt) == (job_id, 2)
        assert rig.job(job_id).boot_id == LATER_BOOT

    def test_a_lease_whose_answer_was_lost_is_handed_out_again_and_costs_no_attempt(self, rig: JobRig) -> None:
        job_id = rig.leased()
        for _ in range(5):
            lease = rig.lease()
            assert lease is not None
            assert (lease.job_id, lease.attempt) == (job_id, 1)

    def test_a_lease_that_was_renewed_and_forgotten_costs_an_attempt(self, rig: JobRig) -> None:
        job_id = rig.leased()
        now = utcnow() - timedelta(seconds=31)
        with writing() as session:
            session.get_one(Job, job_id).leased_at = now - timedelta(seconds=20)
        rig.renew(job_id, now=now)
        lease = rig.lease()
        assert lease is not None
        assert (lease.job_id, lease.attempt) == (job_id, 2)

    def test_a_job_that_was_lost_too_often_expires(self, rig: JobRig) -> None:
        job_id = rig.leased()
        for life in range(1, 4):
            rig.lease(f"boot-000{life}")
        assert rig.jobs() == [("expired", 3)]
        assert (rig.job(job_id).problem or {})["code"] == "lease_lost"
        assert queued(ADVANCE_ROUND) == [[rig.round_id]]

    def test_a_worker_with_another_revision_of_the_algorithm_gets_nothing_and_its_client_is_out(
        self, data_folder: Path
    ) -> None:
        rig = set_up(data_folder, algorithms={"fedavg": 2})
        rig.offer()
        assert rig.lease() is None
        client = rig.client()
        assert (client.state, client.reason) == ("out", "algorithm_revision")
        assert client.reason_detail == "The worker lacks revision 1 of fedavg: update it."
        assert rig.jobs() == [("withdrawn", 1)]
        assert queued(ADVANCE_ROUND) == [[rig.round_id]]
        assert queued(ADVANCE_FEDERATION) == [[rig.federation_id]]

    def test_a_client_that_left_gets_nothing_more(self, rig: JobRig) -> None:
        rig.offer()
        with writing() as session:
            session.get_one(Client, rig.client_id).state = "left"
        assert rig.lease() is None
        assert rig.jobs() == [("withdrawn", 1)]

    def test_a_worker_revoked_while_it_waited_gets_nothing(self, rig: JobRig) -> None:
        rig.offer()
        with writing() as session:
            session.get_one(Worker, rig.worker_id).revoked_at = utcnow()
        assert rig.lease() is None
        assert rig.jobs() == [("offered", 1)]

    def test_a_lease_that_did_not_reach_the_worker_costs_no_attempt(self, rig: JobRig) -> None:
        job_id = rig.leased()
        with writing() as session:
            jobs.hand_back(session, job_id, BOOT, utcnow())
        assert rig.jobs() == [("offered", 1)]


class TestRenew:
    def test_it_keeps_the_lease_and_the_progress(self, rig: JobRig) -> None:
        job_id, later = rig.leased(), utcnow() + timedelta(seconds=50)
        progress = JobProgress(done=3, total=20, metrics={"loss": 0.5, "diverged": float("nan")})
        answer = rig.renew(job_id, progress, later)
        assert isinstance(answer, RenewResponse)
        assert answer.expires_at == later + timedelta(seconds=60) == rig.job(job_id).lease_expires_at
        assert rig.job(job_id).progress == {"done": 3, "total": 20, "metrics": {"loss": 0.5}}

    def test_another_life_of_the_worker_has_lost_it(self, rig: JobRig) -> None:
        job_id = rig.leased()
        before = scene.everything()
        lost = rig.renew(job_id, boot_id=LATER_BOOT)
        assert isinstance(lost, Conflict)
        assert lost.code == "lease_lost"
        assert scene.everything() == before

    def test_another_worker_finds_nothing(self, rig: JobRig) -> None:
        job_id = rig.leased()
        assert isinstance(rig.renew(job_id, worker_id="wkr_other"), NotFound)

    def test_one_that_is_lost_keeps_no_other_from_being_kept(self, rig: JobRig) -> None:
        job_id, later = rig.leased(), utcnow() + timedelta(seconds=50)
        asked = [(job_id, LATER_BOOT), ("job_gone", BOOT), (job_id, BOOT)]
        with writing() as session:
            renewals = [(rig.worker_id, job, RenewRequest(boot_id=boot)) for job, boot in asked]
            answers = jobs.renew(session, renewals, later)
        assert [type(answer) for answer in answers] == [Conflict, NotFound, RenewResponse]
        assert rig.job(job_id).lease_expires_at == later + timedelta(seconds=60)


class TestExpire:
    def expire(self, after_seconds: float) -> list[str]:
        with writing() as session:
            return jobs.expire_leases(session, utcnow() + timedelta(seconds=after_seconds))

    def test_an_expired_lease_is_offered_again_while_its_worker_lives(self, rig: JobRig) -> None:
        job_id = rig.leased()
        assert self.expire(59) == []
        assert rig.jobs() == [("leased", 1)]
        assert self.expire(61) == []
        assert rig.jobs() == [("offered", 2)]
        assert rig.job(job_id).boot_id is None

    def test_a_lease_of_a_worker_that_is_not_heard_of_any_more_expires(self, rig: JobRig) -> None:
        rig.leased()
        assert self.expire(91) == [rig.round_id]
        assert rig.jobs() == [("expired", 1)]
        assert queued(ADVANCE_ROUND) == [[rig.round_id]]
        assert scene.events_of(rig.federation_id) == ["job.expired"]

    def test_a_describe_job_wakes_its_federation(self, rig: JobRig) -> None:
        rig.leased("describe")
        assert self.expire(91) == [rig.federation_id]
        assert queued(ADVANCE_FEDERATION) == [[rig.federation_id]]

    def test_the_last_attempt_expires(self, rig: JobRig) -> None:
        with writing() as session:
            federation = session.get_one(Federation, rig.federation_id)
            federation.definition = federation.definition | {"max_attempts": 1}
        rig.leased()
        assert self.expire(61) == [rig.round_id]


def test_the_slots_are_those_that_the_worker_said_last(rig: JobRig) -> None:
    rig.leased()
    rig.offer(client_id=rig.another_client("b"))
    with writing() as session:
        worker = session.get_one(Worker, rig.worker_id)
        worker.capabilities = Capabilities(algorithms={"fedavg": 1}, slots=2).model_dump(mode="json")
    assert rig.lease() is not None
    assert rig.jobs() == [("leased", 1), ("leased", 1)]
