"""Retries against a real server on loopback: the calls, their times and their idempotency keys."""

import socket
import threading
from pathlib import Path

import httpx
import pytest
from tenacity import Future, RetryCallState, Retrying

from federated.digests import file_digest
from federated.protocol import (
    DeclineRequest,
    FailRequest,
    HeartbeatRequest,
    LeaseRequest,
    RenewRequest,
)
from tests.worker_agent.faults import Fault
from tests.worker_agent.leases import SUBMISSION
from tests.worker_agent.recording_coordinator import RecordingCoordinator
from worker_agent.coordinator_api.client import CoordinatorClient
from worker_agent.coordinator_api.connection import jitter, open_http, wait_retry_after
from worker_agent.coordinator_api.identity import Identity
from worker_agent.errors import (
    CoordinatorAway,
    is_transient,
)
from worker_agent.settings import AgentSettings

BOOT = "boot-0001"
HEARTBEAT = "POST /v1/workers/me/heartbeat"


class TestTryingAgain:
    def test_a_heartbeat_is_sent_again_after_a_failure_of_the_server(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail(HEARTBEAT, Fault(503), Fault(lose_answer=True))
        assert client.heartbeat(HeartbeatRequest(boot_id=BOOT)).heartbeat_seconds == 0.2
        assert coordinator.count(HEARTBEAT) == 3

    def test_a_submission_whose_answer_was_lost_is_sent_again(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail("POST /v1/jobs/job_1/submit", Fault(lose_answer=True))
        assert client.submit("job_1", SUBMISSION).state == "submitted"
        assert coordinator.count("POST /v1/jobs/job_1/submit") == 2

    def test_a_lease_whose_answer_was_lost_is_not_asked_for_again(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail("POST /v1/jobs/lease", Fault(lose_answer=True))
        with pytest.raises(CoordinatorAway):
            client.lease(LeaseRequest(boot_id=BOOT, wait_seconds=0))
        assert coordinator.count("POST /v1/jobs/lease") == 1

    def test_what_never_arrived_is_sent_again_whatever_it_is(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail("POST /v1/jobs/job_1/fail", Fault(429, headers={"Retry-After": "0"}))
        client.fail("job_1", FailRequest(boot_id=BOOT, code="out_of_memory", detail="", transient=True))
        assert coordinator.count("POST /v1/jobs/job_1/fail") == 2

    def test_an_agent_that_stops_does_not_try_again(
        self, http: httpx.Client, identity: Identity, coordinator: RecordingCoordinator
    ) -> None:
        stopping = threading.Event()
        stopping.set()
        coordinator.fail(HEARTBEAT, Fault(503))
        with pytest.raises(CoordinatorAway):
            CoordinatorClient(http, identity, stopping).heartbeat(HeartbeatRequest(boot_id=BOOT))
        assert coordinator.count(HEARTBEAT) == 1

    def test_a_host_without_a_coordinator_is_away(self, settings: AgentSettings) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            stopping = threading.Event()
            stopping.set()
            with open_http(settings, f"http://127.0.0.1:{taken.getsockname()[1]}") as http:
                with pytest.raises(CoordinatorAway, match="cannot reach") as away:
                    CoordinatorClient(http, None, stopping).probe()
        assert away.value.never_sent
        assert is_transient(away.value)

    def test_the_pause_is_never_shorter_than_the_coordinator_asked_and_random_beyond_that(self) -> None:
        state = RetryCallState(Retrying(), None, (), {})
        state.outcome = Future(1)
        state.outcome.set_exception(CoordinatorAway("busy", retry_after_seconds=7.0))
        pauses = [wait_retry_after(0.1, 1.0)(state) for _ in range(20)]
        assert all(7.0 <= pause <= 8.0 for pause in pauses)
        assert len(set(pauses)) > 10

    @pytest.mark.parametrize("call", ["fail", "decline"])
    def test_a_job_given_back_whose_answer_was_lost_is_given_back_again_under_the_same_key(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator, call: str
    ) -> None:
        path = f"POST /v1/jobs/job_1/{call}"
        coordinator.fail(path, Fault(lose_answer=True))
        if call == "fail":
            client.fail("job_1", FailRequest(boot_id=BOOT, code="out_of_memory", detail="", transient=True))
        else:
            client.decline("job_1", DeclineRequest(boot_id=BOOT, code="policy", detail=""))
        first, again = coordinator.keys_of(path)
        assert first == again
        assert first is not None

    def test_two_failures_of_one_job_have_two_keys(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator
    ) -> None:
        for _ in range(2):
            client.fail("job_1", FailRequest(boot_id=BOOT, code="out_of_memory", detail="", transient=True))
        assert len(set(coordinator.keys_of("POST /v1/jobs/job_1/fail"))) == 2

    def test_a_request_that_still_runs_under_its_key_is_waited_for(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator
    ) -> None:
        running = Fault(409, headers={"Retry-After": "0"}, body={"code": "idempotency_key_running"})
        coordinator.fail("POST /v1/jobs/job_1/fail", running, running)
        client.fail("job_1", FailRequest(boot_id=BOOT, code="out_of_memory", detail="", transient=True))
        assert coordinator.count("POST /v1/jobs/job_1/fail") == 3

    def test_every_call_has_all_four_timeouts(
        self, http: httpx.Client, client: CoordinatorClient, tmp_path: Path
    ) -> None:
        seen: list[httpx.Request] = []
        http.event_hooks["request"] = [seen.append]
        client.probe()
        client.who_am_i()
        client.heartbeat(HeartbeatRequest(boot_id=BOOT))
        client.lease(LeaseRequest(boot_id=BOOT, wait_seconds=0))
        client.renew("job_1", RenewRequest(boot_id=BOOT))
        client.show("job_1", wait_seconds=1)
        client.submit("job_1", SUBMISSION)
        client.fail("job_1", FailRequest(boot_id=BOOT, code="out_of_memory", detail="", transient=True))
        client.decline("job_1", DeclineRequest(boot_id=BOOT, code="policy", detail=""))
        source = tmp_path / "update"
        source.write_bytes(b"0123456789abc")
        client.cache(tmp_path / "cache").fetch(client.upload(source, file_digest(source)))
        assert len({(request.method, request.url.path) for request in seen}) == 14
        for request in seen:
            limits = request.extensions["timeout"]
            assert set(limits) == {"connect", "read", "write", "pool"}
            assert all(0 < seconds <= 60 for seconds in limits.values()), (request.url, limits)


def test_pauses_of_agents_that_were_answered_together_differ_by_up_to_a_tenth() -> None:
    pauses = sorted(jitter(10.0) for _ in range(1_000))
    assert 9.0 <= pauses[0] < 9.5 < 10.5 < pauses[-1] <= 11.0
