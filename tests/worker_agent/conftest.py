"""Fixtures for the tests of the agent."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.worker_agent.recording_coordinator import RecordingCoordinator, serving
from worker_agent.coordinator_api.client import CoordinatorClient
from worker_agent.coordinator_api.connection import open_http
from worker_agent.coordinator_api.identity import Identity, WorkerRecord, make_key, save_record
from worker_agent.settings import FILE_VARIABLE, AgentSettings


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FEDLOOM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(FILE_VARIABLE, "no-such-file.toml")


@pytest.fixture
def coordinator() -> Iterator[RecordingCoordinator]:
    with serving(RecordingCoordinator()) as running:
        yield running


@pytest.fixture
def settings(tmp_path: Path) -> AgentSettings:
    """Settings of a worker with one data set and one model, on the CPU, quick to give up."""
    return AgentSettings(
        folder=tmp_path / "worker",
        datasets={"messages": {"path": tmp_path / "messages.jsonl"}},
        models={"small": str(tmp_path / "small")},
        device="cpu",
        lease_wait_seconds=0,
        heartbeat_seconds=0.2,
        request_timeout_seconds=10,
        stop_seconds=0.5,
        cancel_seconds=5,
    )


@pytest.fixture
def identity(settings: AgentSettings, coordinator: RecordingCoordinator) -> Identity:
    """A worker that this coordinator knows; from now on it wants signed requests."""
    key = make_key(settings.folder)
    record = WorkerRecord(
        url=coordinator.url, worker_id="wkr_1", organization_id="org_1", organization_name="Clinic", name="worker"
    )
    save_record(settings.folder, record)
    coordinator.public_key = key.public_key()
    return Identity(record, key)


@pytest.fixture
def http(settings: AgentSettings, coordinator: RecordingCoordinator) -> Iterator[httpx.Client]:
    with open_http(settings, coordinator.url) as client:
        yield client


@pytest.fixture
def client(http: httpx.Client, identity: Identity) -> CoordinatorClient:
    return CoordinatorClient(http, identity, threading.Event())
