"""Two real agents with one key: a data folder was copied to a second place, and both are started."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.audit_log import chain_of
from tests.support.service import Service
from tests.worker_agent.running_agent import wait_until
from worker_agent.coordinator_api.enrollment import enroll
from worker_agent.settings import FILE_VARIABLE, load_settings

AGENT = ("worker_agent", "run")
WITH_A_SCRIPTED_CHILD = ("tests.worker_agent.running_agent",)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents of this coordinator beat three times a second."""
    monkeypatch.setenv("FEDLOOM_HEARTBEAT_SECONDS", "0.3")


@contextmanager
def started(folder: Path, *module: str) -> Iterator[subprocess.Popen[bytes]]:
    """An agent over the settings in the folder; `agent.log` has its log."""
    environment = os.environ | {FILE_VARIABLE: str(folder / "worker-agent.toml"), "OMP_NUM_THREADS": "1"}
    with (folder / "agent.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", *module], env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def log_of(folder: Path) -> str:
    return (folder / "agent.log").read_text()


def test_the_one_that_was_there_first_ends_and_the_owner_and_the_other_are_told(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = service.new_organization("Bank")
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "worker-agent.toml").write_text(f'url = "{service.url}"\nfolder = "state"\ndevice = "cpu"\n')
    monkeypatch.setenv(FILE_VARIABLE, str(first / "worker-agent.toml"))
    worker_id = enroll(load_settings(), service.url, service.new_enrollment_token(bank.id)).worker_id
    shutil.copytree(first, second)

    def shown() -> Mapping[str, Any]:
        answer: Mapping[str, Any] = bank.viewer.get(f"/v1/workers/{worker_id}").json()
        return answer

    with started(first, *AGENT) as earlier:
        wait_until(lambda: shown()["state"] == "alive")
        with started(second, *WITH_A_SCRIPTED_CHILD) as later:
            assert earlier.wait(60) == 3, log_of(first)
            wait_until(lambda: "worker_doubled" in log_of(second))
            assert later.poll() is None, log_of(second)
            assert shown()["state"] == "alive"
            assert shown()["doubled_at"] is not None
    assert "two agents run with one key" in log_of(first)
    assert log_of(second).count("worker_doubled") == 1
    assert [entry["action"] for entry in chain_of(service, bank.id)].count("worker.doubled") == 1
