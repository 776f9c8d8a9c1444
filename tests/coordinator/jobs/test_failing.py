"""Failures that a worker reports: jobs that are offered again, jobs that end, and their problems."""

from pathlib import Path

import pytest

from coordinator.db.sessions import utcnow, writing
from coordinator.errors import Conflict
from coordinator.jobs import service as jobs
from coordinator.models import Federation
from coordinator.queue.wakeups import ADVANCE_ROUND
from federated.failures import sentence
from federated.protocol import (
    AGENT_STOPPING,
    DISK_FULL,
    DeclineRequest,
    FailRequest,
    FailureFacts,
)
from tests.coordinator.clients import scene
from tests.coordinator.jobs.job_rig import BOOT, JobRig, set_up
from tests.support.queue import queued


def failure(transient: bool) -> FailRequest:
    return FailRequest(boot_id=BOOT, code="out_of_memory", transient=transient)


class TestFail:
    def fail(self, rig: JobRig, job_id: str, transient: bool) -> str:
        with writing() as session:
            return jobs.fail(session, rig.worker_id, job_id, failure(transient), utcnow()).state

    def test_a_transient_failure_is_offered_again_with_its_reason(self, rig: JobRig) -> None:
        job_id = rig.leased()
        assert self.fail(rig, job_id, transient=True) == "offered"
        assert rig.jobs() == [("offered", 2)]
        assert (rig.job(job_id).problem or {})["detail"] == sentence("out_of_memory")

    def test_a_final_failure_ends_the_job_and_wakes_its_round(self, rig: JobRig) -> None:
        job_id = rig.leased()
        assert self.fail(rig, job_id, transient=False) == "failed"
        assert rig.client().state == "ready"
        assert queued(ADVANCE_ROUND) == [[rig.round_id]]
        assert scene.events_of(rig.federation_id) == ["job.failed"]

    def test_the_last_attempt_fails_for_good(self, rig: JobRig) -> None:
        job_id = rig.leased()
        for state in ("offered", "offered", "failed"):
            assert self.fail(rig, job_id, transient=True) == state
            rig.lease()

    def unforeseen(self, rig: JobRig, job_id: str, place: str) -> str:
        facts = FailureFacts(error="IndexError", place=place)
        request = FailRequest(boot_id=BOOT, code="training_failed", transient=True, facts=facts)
        with writing() as session:
            return jobs.fail(session, rig.worker_id, job_id, request, utcnow()).state

    def test_an_unforeseen_error_that_comes_twice_at_one_place_is_final(self, rig: JobRig) -> None:
        job_id = rig.leased()
        for place, state in (
            ("federated.payloads.payload:7", "offered"),
            ("federated.payloads.payload:8", "offered"),
        ):
            assert self.unforeseen(rig, job_id, place) == state
            rig.lease()
        with writing() as session:
            federation = session.get_one(Federation, rig.federation_id)
            federation.definition = federation.definition | {"max_attempts": 9}
        assert self.unforeseen(rig, job_id, "federated.payloads.payload:8") == "failed"
        told = rig.job(job_id).problem or {}
        assert (told["error"], told["place"], told["final"]) == ("IndexError", "federated.payloads.payload:8", True)
        assert told["detail"].endswith("The same error came twice at the same place, so the job is not tried again.")

    def test_a_client_that_cannot_describe_itself_twice_the_same_way_is_out(self, rig: JobRig) -> None:
        job_id = rig.leased("describe")
        assert self.unforeseen(rig, job_id, "federated.payloads.payload:8") == "offered"
        rig.lease()
        assert self.unforeseen(rig, job_id, "federated.payloads.payload:8") == "failed"
        assert (rig.client().state, rig.client().reason) == ("out", "training_failed")

    def test_a_job_that_a_stopping_agent_gives_back_costs_no_attempt(self, rig: JobRig) -> None:
        job_id = rig.leased()
        given = FailRequest(boot_id=BOOT, code=AGENT_STOPPING, transient=True)
        for _ in range(4):
            with writing() as session:
                assert jobs.fail(session, rig.worker_id, job_id, given, utcnow()).state == "offered"
            assert rig.lease() is not None
        with writing() as session:
            jobs.fail(session, rig.worker_id, job_id, given, utcnow())
        assert rig.jobs() == [("offered", 1)]

    def test_a_client_that_cannot_describe_itself_is_out(self, rig: JobRig) -> None:
        job_id = rig.leased("describe")
        assert self.fail(rig, job_id, transient=False) == "failed"
        assert (rig.client().state, rig.client().reason) == ("out", "out_of_memory")

    def test_a_job_that_found_no_room_costs_no_attempt_and_says_so(self, rig: JobRig) -> None:
        job_id = rig.leased()
        given = FailRequest(boot_id=BOOT, code=DISK_FULL, transient=True)
        for _ in range(4):
            with writing() as session:
                assert jobs.fail(session, rig.worker_id, job_id, given, utcnow()).state == "offered"
            assert (rig.job(job_id).problem or {})["code"] == "disk_full"
            assert rig.lease() is not None
        assert rig.jobs() == [("leased", 1)]

    def test_a_job_that_is_leased_no_more_is_not_failed(self, rig: JobRig) -> None:
        job_id = rig.offer()
        with pytest.raises(Conflict) as lost:
            self.fail(rig, job_id, transient=False)
        assert lost.value.code == "lease_lost"


def test_a_declined_job_takes_its_client_out_with_all_its_jobs(data_folder: Path) -> None:
    rig = set_up(data_folder, slots=2)
    first, second = rig.leased("evaluate"), rig.leased("train")
    request = DeclineRequest(boot_id=BOOT, code="policy_algorithm", detail="a patient's name")
    with writing() as session:
        answer = jobs.decline(session, rig.worker_id, first, request, utcnow())
    assert (answer.state, (answer.problem or {})["code"]) == ("declined", "policy_algorithm")
    assert rig.job(second).state == "withdrawn"
    assert (rig.client().state, rig.client().reason_detail) == ("out", sentence("policy_algorithm"))
    assert "patient" not in str([rig.client().reason_detail, answer.problem])
    assert scene.events_of(rig.federation_id) == ["job.declined", "client.out"]
    assert queued(ADVANCE_ROUND) == [[rig.round_id]]
