"""The agent's life, against a real server on loopback and with real executor processes."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import torch

from federated.payloads.payload import Payload
from federated.protocol import ArtifactReference, MemoryReference
from tests.support.bad_texts import PATTERNS, TEMPLATES
from tests.support.logged import logged
from tests.worker_agent.faults import Fault
from tests.worker_agent.recording_coordinator import RecordingCoordinator
from tests.worker_agent.running_agent import (
    CHILD,
    digest_of,
    jobs_done,
    offer,
    running,
    wait_until,
    waiting_in_outbox,
)
from worker_agent.coordinator_api.identity import Identity
from worker_agent.display import NoBars
from worker_agent.errors import ConfigurationError, DuplicateWorker, NotAuthorized
from worker_agent.runtime.agent import Agent, only_agent
from worker_agent.settings import AgentSettings, PolicySettings

HEARTBEAT = "POST /v1/workers/me/heartbeat"
LEASE = "POST /v1/jobs/lease"
SUBMIT = "POST /v1/jobs/job_1/submit"
FAIL = "POST /v1/jobs/job_1/fail"
INSTRUCTION = b"instruction"
UNREADABLE: dict[str, dict[str, Any]] = {
    f"template_{place}": {"task": {"cloze": {"template": text, "words": ["a", "b"]}}}
    for place, text in enumerate(TEMPLATES.values())
} | {
    f"pattern_{place}": {"trainable": {"kind": "lora", "target_modules": [text], "rank_pattern": {text: 2}}}
    for place, text in enumerate(PATTERNS.values())
}
"""Job id -> what is wrong with the job's work."""


class TestWork:
    def test_a_job_is_done_uploaded_and_submitted(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.artifacts[digest_of(INSTRUCTION)] = INSTRUCTION
        offer(coordinator, instruction=ArtifactReference(digest=digest_of(INSTRUCTION), size_bytes=len(INSTRUCTION)))
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count(SUBMIT) == 1)
            wait_until(lambda: not waiting_in_outbox(settings))
        update = b"update 11 instruction none"
        body = coordinator.body_of(SUBMIT)
        assert body["update"]["digest"] == digest_of(update)
        assert coordinator.artifacts[digest_of(update)] == update
        assert (body["download_bytes"], body["upload_bytes"]) == (len(INSTRUCTION), len(update))
        assert not any((settings.folder / "outbox" / ".work").iterdir())

    def test_the_memory_of_a_round_is_where_the_next_one_starts(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        memory = MemoryReference(round_number=1, digest=digest_of(b"memory 1"))
        offer(coordinator)
        offer(coordinator, job_id="job_2", round_number=2, memory=memory)
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count("POST /v1/jobs/job_2/submit") == 1)
        submitted = coordinator.body_of("POST /v1/jobs/job_2/submit")
        assert submitted["update"]["digest"] == digest_of(b"update 11  memory 1")

    def test_the_heartbeat_says_what_the_worker_can(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        heartbeat = "POST /v1/workers/me/heartbeat"
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count(heartbeat) >= 3)
        can = coordinator.body_of(heartbeat)["capabilities"]
        assert can["datasets"] == [{"name": "messages", "task": None}]
        assert (can["models"], can["slots"], can["device"]) == (["small"], 1, "cpu")
        assert can["memory_bytes"] > can["free_memory_bytes"] > 2**20
        assert can["versions"]["torch"]

    def test_each_slot_works_for_itself(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        two = settings.model_copy(update={"slots": 2})
        offer(coordinator, do="wait")
        offer(coordinator, job_id="job_2")
        with running(two, identity, http):
            wait_until(lambda: coordinator.count("POST /v1/jobs/job_2/submit") == 1)
        assert coordinator.count(SUBMIT) == 0

    def test_a_job_outside_the_policy_is_declined(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        offer(coordinator, dataset="secrets")
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count("POST /v1/jobs/job_1/decline") == 1)
        assert coordinator.body_of("POST /v1/jobs/job_1/decline")["code"] == "data_missing"
        assert jobs_done(settings) == []

    def test_an_instruction_above_the_nodes_rank_is_declined(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        content = Payload({"layer.query.lora_A.weight": torch.zeros(5, 3)}).encode()
        coordinator.artifacts[digest_of(content)] = content
        offer(coordinator, instruction=ArtifactReference(digest=digest_of(content), size_bytes=len(content)))
        limited = settings.model_copy(update={"policy": PolicySettings(max_rank=4)})
        with running(limited, identity, http):
            wait_until(lambda: coordinator.count("POST /v1/jobs/job_1/decline") == 1)
        told = coordinator.body_of("POST /v1/jobs/job_1/decline")
        assert told["code"] == "policy_rank"
        assert (told["facts"]["asked"], told["facts"]["allowed"], told["facts"]["dataset"]) == (5, 4, "messages")
        assert coordinator.count(SUBMIT) == coordinator.count(FAIL) == 0

    def test_a_problem_with_the_data_is_declined(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        offer(coordinator, do="decline")
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count("POST /v1/jobs/job_1/decline") == 1)
        told = coordinator.body_of("POST /v1/jobs/job_1/decline")
        assert (told["code"], told["facts"]["dataset"], told["facts"]["count"]) == ("data_empty", "messages", 0)
        assert "no rows" not in str(told)


class TestTrouble:
    def test_a_child_that_dies_fails_its_job_and_the_agent_lives(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        offer(coordinator, do="kill")
        offer(coordinator, job_id="job_2")
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count("POST /v1/jobs/job_2/submit") == 1)
        failure = coordinator.body_of(FAIL)
        assert (failure["code"], failure["transient"]) == ("executor_died", True)
        assert "SIGKILL" not in str(failure)

    def test_a_lost_lease_ends_the_job_without_a_word(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.lost_jobs.add("job_1")
        offer(coordinator, do="wait", lease_seconds=0.3)
        offer(coordinator, job_id="job_2")
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count("POST /v1/jobs/job_2/submit") == 1)
        assert coordinator.count(FAIL) == coordinator.count(SUBMIT) == 0

    def test_a_lease_is_renewed_with_progress_while_the_job_runs(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        renew = "POST /v1/jobs/job_1/renew"
        coordinator.fail(renew, Fault(503))
        offer(coordinator, do="wait", lease_seconds=0.3)
        with running(settings, identity, http):
            wait_until(lambda: any(body["progress"] for body in coordinator.bodies_of(renew)))
        assert coordinator.bodies_of(renew)[-1]["progress"] == {"done": 1, "total": 2, "metrics": {}}

    def test_a_refused_update_is_told_as_failed_and_forgotten(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail(SUBMIT, Fault(422, body={"code": "tensor_wrong", "detail": "wrong", "tensor": "a.weight"}))
        offer(coordinator)
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count(FAIL) == 1)
            wait_until(lambda: not waiting_in_outbox(settings))
        failure = coordinator.body_of(FAIL)
        assert (failure["code"], failure["transient"]) == ("result_refused", False)

    def test_a_damaged_update_is_given_back_to_be_made_again(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        offer(coordinator, do="damage")
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count(FAIL) == 1)
            wait_until(lambda: not waiting_in_outbox(settings))
        failure = coordinator.body_of(FAIL)
        assert (failure["code"], failure["transient"]) == ("result_damaged", True)
        assert coordinator.count(SUBMIT) == 0

    def test_jobs_that_cannot_be_read_are_given_back_and_the_slot_goes_on(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        for name, changes in UNREADABLE.items():
            offer(coordinator, job_id=name)
            for field, change in changes.items():
                coordinator.offers[-1]["work"][field] |= change
        offer(coordinator)
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count(SUBMIT) == 1)
        for name in UNREADABLE:
            failure = coordinator.body_of(f"POST /v1/jobs/{name}/fail")
            assert (failure["code"], failure["transient"]) == ("lease_invalid", False), name
            assert failure["facts"]["reference"], name
            assert coordinator.count(f"POST /v1/jobs/{name}/submit") == 0, name

    def test_a_late_update_is_forgotten(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail(SUBMIT, Fault(409, body={"code": "round_closed", "detail": "too late"}))
        offer(coordinator)
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count(SUBMIT) == 1)
            wait_until(lambda: not waiting_in_outbox(settings))
        assert coordinator.count(FAIL) == 0

    def test_a_coordinator_that_was_away_is_worked_for_again(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail(LEASE, Fault(503), Fault(lose_answer=True), Fault(500))
        coordinator.fail(HEARTBEAT, Fault(503))
        offer(coordinator, job_id="job_lost_with_the_answer")
        offer(coordinator)
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count(SUBMIT) == 1)
        assert jobs_done(settings) == ["job_1"]

    def test_an_instruction_that_is_gone_fails_the_job(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        offer(coordinator, instruction=ArtifactReference(digest=digest_of(b"gone"), size_bytes=4))
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count(FAIL) == 1)
        assert coordinator.body_of(FAIL)["code"] == "coordinator_trouble"


class TestStopping:
    def test_a_running_job_is_handed_back(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        offer(coordinator, do="wait")
        with running(settings, identity, http):
            wait_until(lambda: jobs_done(settings) == ["job_1"])
        failure = coordinator.body_of(FAIL)
        assert (failure["code"], failure["transient"]) == ("agent_stopping", True)

    def test_a_running_job_may_finish_in_time(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        patient = settings.model_copy(update={"stop_seconds": 30})
        offer(coordinator)
        with running(patient, identity, http):
            wait_until(lambda: jobs_done(settings) == ["job_1"])
        assert coordinator.count(SUBMIT) == 1
        assert coordinator.count(FAIL) == 0

    def test_told_twice_it_hands_back_at_once(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        patient = settings.model_copy(update={"stop_seconds": 3600})
        offer(coordinator, do="wait")
        with running(patient, identity, http) as agent:
            wait_until(lambda: jobs_done(settings) == ["job_1"])
            agent.stop()
        assert coordinator.body_of(FAIL)["code"] == "agent_stopping"

    def test_an_unknown_worker_ends_with_the_reason(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail(HEARTBEAT, Fault(401, body={"code": "worker_revoked"}))
        with pytest.raises(NotAuthorized, match="worker_revoked"):
            Agent(settings, identity, http, NoBars()).run()
        assert coordinator.count(LEASE) == 0

    def test_one_that_another_agent_replaced_takes_no_job_and_ends_with_the_reason(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        doubled = Fault(409, body={"code": "worker_doubled", "detail": "Two agents run with one key."})
        coordinator.fail(LEASE, *[doubled] * 100)
        agent = Agent(settings, identity, http, NoBars(), CHILD)
        with ThreadPoolExecutor(1) as pool, ExitStack() as ending:
            ending.callback(agent.stop)
            run = pool.submit(agent.run)
            wait_until(lambda: coordinator.count(LEASE) > 0)
            coordinator.fail(HEARTBEAT, doubled)
            with pytest.raises(DuplicateWorker, match="Two agents run with one key"):
                run.result(60)
        assert coordinator.count(LEASE) == 1

    def test_one_that_goes_on_beside_another_warns_once(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        with logged() as lines, running(settings, identity, http):
            wait_until(lambda: coordinator.count(LEASE) > 0)
            coordinator.doubled_at = "2026-01-02T03:04:05Z"
            heard = coordinator.count(HEARTBEAT)
            wait_until(lambda: coordinator.count(HEARTBEAT) > heard + 3)
        (warning,) = [line for line in lines() if line["event"] == "worker_doubled"]
        assert warning["heard_at"] == "2026-01-02T03:04:05+00:00"
        assert "rotate-key" in warning["reason"]

    def test_a_data_folder_has_one_agent(self, settings: AgentSettings) -> None:
        with only_agent(settings.folder):
            with pytest.raises(ConfigurationError, match="another worker-agent"), only_agent(settings.folder):
                pass
        with only_agent(settings.folder):
            pass
