"""Long polls that something between agent and coordinator cuts: they start again, and the next job is done."""

import httpx
import pytest

from tests.worker_agent.faults import Fault
from tests.worker_agent.recording_coordinator import RecordingCoordinator
from tests.worker_agent.running_agent import offer, running, wait_until
from worker_agent.coordinator_api.identity import Identity
from worker_agent.settings import AgentSettings

LEASE, SUBMIT = "POST /v1/jobs/lease", "POST /v1/jobs/job_1/submit"


@pytest.mark.parametrize(
    "fault", [Fault(504, page=True), Fault(502, page=True), Fault(lose_answer=True)], ids=["504", "502", "closed"]
)
def test_a_wait_that_a_proxy_ends_is_begun_again(
    settings: AgentSettings,
    identity: Identity,
    http: httpx.Client,
    coordinator: RecordingCoordinator,
    fault: Fault,
) -> None:
    coordinator.fail(LEASE, *[fault] * 3)
    with running(settings, identity, http):
        wait_until(lambda: coordinator.count(LEASE) >= 4)
        offer(coordinator)
        wait_until(lambda: coordinator.count(SUBMIT) == 1)
