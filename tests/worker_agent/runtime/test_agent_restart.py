"""Restart of an agent: the state on disk at its end, and its use by the next one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from federated.protocol import MemoryReference
from tests.worker_agent.faults import Fault
from tests.worker_agent.recording_coordinator import RecordingCoordinator
from tests.worker_agent.running_agent import digest_of, jobs_done, offer, running, wait_until, waiting_in_outbox
from worker_agent.coordinator_api.identity import Identity
from worker_agent.settings import FILE_VARIABLE, AgentSettings
from worker_agent.storage.client_memory import MemoryChain

LEASE = "POST /v1/jobs/lease"
SUBMIT = "POST /v1/jobs/job_1/submit"
FAIL = "POST /v1/jobs/job_1/fail"


class TestOutbox:
    def test_what_lies_there_is_submitted_before_the_first_lease(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail(SUBMIT, *[Fault(503)] * 100)
        offer(coordinator)
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count(SUBMIT) > 0)
        coordinator.faults.clear()
        coordinator.calls.clear()
        coordinator.bodies.clear()
        coordinator.fail(SUBMIT, *[Fault(503, headers={"Retry-After": "0.3"})] * 3)
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count(LEASE) > 0)
        before_the_lease = coordinator.calls[: coordinator.calls.index(LEASE)]
        assert before_the_lease.count(SUBMIT) == coordinator.count(SUBMIT) == 4
        assert jobs_done(settings) == ["job_1"]

    def test_a_job_that_was_done_is_not_done_again_when_leased_again(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.job_state = "offered"
        coordinator.fail(SUBMIT, Fault(409, body={"code": "lease_lost", "detail": "offered again"}))
        offer(coordinator)
        offer(coordinator, attempt=2)
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count(SUBMIT) == 2)
        assert jobs_done(settings) == ["job_1"]

    def test_a_result_whose_job_ended_without_it_is_forgotten(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.job_state = "expired"
        coordinator.fail(SUBMIT, Fault(409, body={"code": "lease_lost", "detail": "expired"}))
        offer(coordinator)
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count("GET /v1/jobs/job_1") == 1)
            wait_until(lambda: not waiting_in_outbox(settings))


class TestProcess:
    @pytest.fixture
    def environment(self, settings: AgentSettings, identity: Identity, tmp_path: Path) -> dict[str, str]:
        """Of an agent as a process of its own; it finds its coordinator by its enrollment."""
        file = tmp_path / "worker-agent.toml"
        file.write_text(
            f'folder = "{settings.folder}"\ndevice = "cpu"\nlease_wait_seconds = 0\nheartbeat_seconds = 0.2\n'
            'stop_seconds = 0.5\nmodels = {small = "small"}\n[datasets.messages]\npath = "messages.jsonl"\n'
        )
        return {**os.environ, FILE_VARIABLE: str(file)}

    def start(self, environment: dict[str, str]) -> subprocess.Popen[str]:
        module = [sys.executable, "-m", "tests.worker_agent.running_agent"]
        return subprocess.Popen(module, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def test_a_training_that_was_finished_before_a_sigkill_is_submitted_and_not_done_again(
        self, settings: AgentSettings, environment: dict[str, str], coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail(SUBMIT, *[Fault(503)] * 1000)
        offer(coordinator)
        first = self.start(environment)
        wait_until(lambda: coordinator.count(SUBMIT) > 0)
        executors = psutil.Process(first.pid).children(recursive=True)
        first.kill()
        first.communicate()
        coordinator.faults.clear()
        coordinator.calls.clear()
        coordinator.bodies.clear()
        second = self.start(environment)
        wait_until(lambda: coordinator.count(LEASE) > 0)
        second.terminate()
        ended, _ = second.communicate(timeout=60)
        assert (second.returncode, ended) == (0, "ended\n")
        assert coordinator.count(SUBMIT) == 1
        assert jobs_done(settings) == ["job_1"]
        wait_until(lambda: not any(executor.is_running() for executor in executors))
        memory = MemoryReference(round_number=1, digest=digest_of(b"memory 1"))
        assert MemoryChain(settings.folder / "memory").find("fed_1", "clt_1", memory) is not None

    def test_sigterm_hands_the_lease_back_and_ends_the_executor(
        self, settings: AgentSettings, environment: dict[str, str], coordinator: RecordingCoordinator
    ) -> None:
        offer(coordinator, do="wait")
        agent = self.start(environment)
        wait_until(lambda: jobs_done(settings) == ["job_1"])
        executors = psutil.Process(agent.pid).children(recursive=True)
        agent.send_signal(signal.SIGTERM)
        ended, logs = agent.communicate(timeout=60)
        assert (agent.returncode, ended) == (0, "ended\n")
        assert coordinator.body_of(FAIL)["code"] == "agent_stopping"
        assert all(line.startswith("{") for line in logs.splitlines())
        wait_until(lambda: not any(executor.is_running() for executor in executors))

    def test_an_executor_in_the_middle_of_a_step_does_not_outlive_a_killed_agent(
        self, settings: AgentSettings, environment: dict[str, str], coordinator: RecordingCoordinator
    ) -> None:
        offer(coordinator, do="ignore")
        agent = self.start(environment)
        wait_until(lambda: jobs_done(settings) == ["job_1"])
        executors = psutil.Process(agent.pid).children(recursive=True)
        agent.kill()
        agent.communicate()
        wait_until(lambda: not any(executor.is_running() for executor in executors))

    def test_importing_the_agent_leaves_torch_out(self) -> None:
        heavy = "print(sorted({'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules)))"
        code = f"import sys, worker_agent.runtime.agent, worker_agent.__main__; {heavy}"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        assert found.stdout == "[]\n"
