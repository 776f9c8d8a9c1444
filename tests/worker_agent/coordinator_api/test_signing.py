"""Signatures of updates at submission, and rotation of the key."""

from base64 import urlsafe_b64decode
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from federated.signed_statement import Statement, key_id, rotation_message
from tests.worker_agent.faults import Fault
from tests.worker_agent.recording_coordinator import RecordingCoordinator
from tests.worker_agent.running_agent import offer, running, wait_until, waiting_in_outbox
from worker_agent.__main__ import app
from worker_agent.coordinator_api.identity import Identity, load_identity, public_key
from worker_agent.runtime.agent import only_agent
from worker_agent.settings import AgentSettings

SUBMIT = "POST /v1/jobs/job_1/submit"
ROTATE = "POST /v1/workers/me/key"


def check(update: dict[str, Any], key: Ed25519PrivateKey) -> None:
    """Raises InvalidSignature unless the update of job_1 is signed with this key."""
    said = Statement(
        "fed_1", "job_1", "train", 1, "fedavg", 1, update["digest"], update["weight"], update["examples"]
    )
    key.public_key().verify(urlsafe_b64decode(update["signature"] + "=="), said.encode())


class TestUpdates:
    def test_an_update_goes_out_signed(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        offer(coordinator)
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count(SUBMIT) == 1)
        check(coordinator.body_of(SUBMIT)["update"], identity.key)

    def test_what_lay_in_the_outbox_is_signed_with_the_key_of_the_day(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail(SUBMIT, *[Fault(503)] * 100)
        offer(coordinator)
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count(SUBMIT) > 0)
        coordinator.faults.clear()
        assert len(waiting_in_outbox(settings)) == 1
        another = replace(identity, key=Ed25519PrivateKey.generate())
        coordinator.public_key = another.key.public_key()
        with running(settings, another, http):
            wait_until(lambda: not waiting_in_outbox(settings))
        check(coordinator.bodies_of(SUBMIT)[-1]["update"], another.key)


class TestRotateKey:
    @pytest.fixture
    def config(self, settings: AgentSettings, identity: Identity, tmp_path: Path) -> Path:
        """Settings of an enrolled worker."""
        file = tmp_path / "worker-agent.toml"
        file.write_text(f'folder = "{settings.folder}"\nrequest_timeout_seconds = 5\n')
        return file

    def rotate(self, config: Path) -> Any:
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["rotate-key", "--config", str(config)])

    def test_the_coordinator_knows_the_new_key_and_the_folder_holds_it(
        self, config: Path, settings: AgentSettings, identity: Identity, coordinator: RecordingCoordinator
    ) -> None:
        result = self.rotate(config)
        assert result.exit_code == 0, result.output
        now = load_identity(settings.folder)
        assert now.record == identity.record
        assert coordinator.public_key == now.key.public_key() != identity.key.public_key()
        sent = coordinator.body_of(ROTATE)
        proof, message = urlsafe_b64decode(sent["proof"] + "=="), rotation_message("wkr_1", sent["public_key"])
        now.key.public_key().verify(proof, message)
        assert f"wkr_1 signs with {key_id(public_key(now.key))} from now on" in result.output

    def test_an_answer_that_was_lost_locks_nobody_out(
        self, config: Path, settings: AgentSettings, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail(ROTATE, Fault(lose_answer=True))
        result = self.rotate(config)
        assert result.exit_code == 0, result.output
        assert coordinator.count(ROTATE) == 2
        assert coordinator.public_key == load_identity(settings.folder).key.public_key()

    def test_a_rotation_that_broke_off_goes_on_with_its_key(
        self, config: Path, settings: AgentSettings, identity: Identity, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail(ROTATE, Fault(409, body={"code": "public_key_taken", "detail": "no"}))
        assert "public_key_taken" in self.rotate(config).output
        assert load_identity(settings.folder).key.public_key() == identity.key.public_key()
        assert self.rotate(config).exit_code == 0
        sent = {body["public_key"] for body in coordinator.bodies_of(ROTATE)}
        assert sent == {public_key(load_identity(settings.folder).key)}

    def test_a_revoked_worker_keeps_its_key_and_is_told_why(
        self, config: Path, settings: AgentSettings, identity: Identity, coordinator: RecordingCoordinator
    ) -> None:
        gone = {"code": "worker_revoked", "detail": "Enroll it again."}
        coordinator.fail(ROTATE, Fault(401, body=gone))
        coordinator.fail("GET /v1/workers/me", Fault(401, body=gone))
        result = self.rotate(config)
        assert result.exit_code == 1
        assert "401 worker_revoked: Enroll it again." in result.output
        assert load_identity(settings.folder).key.public_key() == identity.key.public_key()

    def test_it_is_not_done_beside_a_running_agent(
        self, config: Path, settings: AgentSettings, coordinator: RecordingCoordinator
    ) -> None:
        with only_agent(settings.folder):
            result = self.rotate(config)
        assert result.exit_code == 1
        assert "another worker-agent runs" in result.output
        assert coordinator.count(ROTATE) == 0
