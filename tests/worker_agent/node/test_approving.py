"""`worker-agent approve`, with an agent whose policy asks: a job is declined, shown, approved and done."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from tests.worker_agent.leases import make_lease
from tests.worker_agent.recording_coordinator import RecordingCoordinator
from tests.worker_agent.running_agent import jobs_done, offer, running, wait_until
from worker_agent.__main__ import app
from worker_agent.coordinator_api.identity import Identity
from worker_agent.node import approvals
from worker_agent.settings import AgentSettings, PolicySettings

CRAFTED: dict[str, Any] = {
    "task": {"task": "causal_lm", "template": {"prompt": "{text}", "response": "{patient_ssn}"}},
    "trainable": {"kind": "full"},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings whose data folder is `worker`, as that of the fixture `settings`."""
    file = tmp_path / "worker-agent.toml"
    file.write_text('folder = "worker"\n[policy]\napprove = "ask"\n')
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "worker"
    made.mkdir()
    return made


def approve(config: Path, *arguments: str, said: str = "") -> Result:
    runner = CliRunner(env={"COLUMNS": "200", "FEDLOOM_WORKER_CONFIG": None})
    return runner.invoke(app, ["approve", "fed_1", "--config", str(config), *arguments], input=said)


class TestCommand:
    def test_without_a_request_it_says_what_to_do(self, config: Path, folder: Path) -> None:
        approvals.keep(folder, make_lease(federation_id="fed_2"))
        result = approve(config, "--yes")
        assert (result.exit_code, "nothing of federation fed_1 waits for approval" in result.output) == (1, True)
        assert "An agent must receive a request first" in result.output
        assert approvals.approvals(folder).digests == frozenset()

    def test_what_was_asked_is_shown_before_the_question(self, config: Path, folder: Path) -> None:
        approvals.keep(folder, make_lease(work=CRAFTED, owner_name="Bank", settings={"rank": 4}))
        result = approve(config, said="y\n")
        assert result.exit_code == 0, result.output
        (digest,) = approvals.approvals(folder).digests
        assert result.output.splitlines()[:7] == [
            "federation: intents (fed_1)",
            "owner: Bank",
            "data set: messages",
            "columns: text, patient_ssn",
            "settings: rank: 4",
            "task: task: causal_lm; labels: none; template: (prompt: '{text}'; response: '{patient_ssn}'); "
            "cloze: none; max_length: 128; metrics: (accuracy)",
            "base model: id: small; revision: none",
        ]
        for line in (
            "trainable: kind: full; names: none",
            "config: local_steps: 20",
            "rounds: 3",
            f"digest: {digest}",
        ):
            assert line in result.output.splitlines()
        assert result.output.index(digest) < result.output.index("[y/N]")

    @pytest.mark.parametrize("said", ["n\n", "\n", ""])
    def test_anything_but_yes_approves_nothing(self, config: Path, folder: Path, said: str) -> None:
        approvals.keep(folder, make_lease())
        assert approve(config, said=said).exit_code == 1
        assert approvals.approvals(folder).digests == frozenset()
        assert len(approvals.pending(folder, "fed_1")) == 1

    def test_of_several_one_must_be_named(self, config: Path, folder: Path) -> None:
        harmless, crafted = make_lease(), make_lease(work=CRAFTED)
        for lease in (crafted, harmless):
            approvals.keep(folder, lease)
        several = approve(config, "--yes")
        assert (several.exit_code, "made 2 different requests" in several.output) == (1, True)
        digests = [approvals.approval_digest(lease) for lease in (harmless, crafted)]
        assert all(digest in several.output for digest in digests)
        assert approve(config, "--yes", "--digest", "sha256:" + "0" * 64).exit_code == 1
        assert approvals.approvals(folder).digests == frozenset()
        assert approve(config, "--yes", "--digest", digests[0]).exit_code == 0
        assert approvals.approvals(folder).digests == {digests[0]}

    def test_what_is_approved_is_not_asked_again(self, config: Path, folder: Path) -> None:
        approvals.keep(folder, make_lease())
        assert approve(config, "--yes").exit_code == 0
        assert "nothing of federation fed_1 waits" in approve(config, "--yes").output

    def test_a_text_from_outside_is_neither_markup_nor_control(self, config: Path, folder: Path) -> None:
        hostile = "[bold red]Bank[/] \x1b[2J\r\u202e\n[link=https://x]"
        approvals.keep(folder, make_lease(owner_name=hostile, federation_name=hostile, settings={hostile: hostile}))
        result = approve(config, "--yes")
        assert result.exit_code == 0, result.output
        assert f"owner: {hostile!r}" in result.output.splitlines()
        assert not set(result.output) & {"\x1b", "\r", "\u202e"}

    def test_approvals_of_an_earlier_version_are_told_of(self, config: Path, folder: Path) -> None:
        (folder / "approved.json").write_text(json.dumps({"fed_1": "2026-01-01T00:00:00+00:00"}))
        approvals.keep(folder, make_lease())
        first, second = approve(config, said="n\n"), approve(config, "--yes")
        assert all("approve nothing" in result.output for result in (first, second))
        assert approvals.approvals(folder).legacy_entries == ()


class TestAgent:
    """Against a hand-written coordinator, which leases what it wants to."""

    @pytest.fixture
    def asks(self, settings: AgentSettings) -> AgentSettings:
        return settings.model_copy(update={"policy": PolicySettings(approve="ask")})

    def declined(self, coordinator: RecordingCoordinator, job_id: str) -> str:
        path = f"POST /v1/jobs/{job_id}/decline"
        wait_until(lambda: coordinator.count(path) == 1)
        return str(coordinator.body_of(path)["code"])

    def test_it_works_on_what_was_approved_and_on_nothing_else(
        self,
        asks: AgentSettings,
        identity: Identity,
        http: httpx.Client,
        coordinator: RecordingCoordinator,
        config: Path,
    ) -> None:
        with running(asks, identity, http):
            offer(coordinator, owner_name="Bank")
            assert self.declined(coordinator, "job_1") == "policy_approval"
            assert approve(config, "--yes").exit_code == 0
            offer(coordinator, job_id="job_2", owner_name="Bank")
            wait_until(lambda: coordinator.count("POST /v1/jobs/job_2/submit") == 1)
            for number, fields in enumerate(({"owner_name": "Other"}, {"owner_name": "Bank", "work": CRAFTED}), 3):
                offer(coordinator, job_id=f"job_{number}", **fields)
                assert self.declined(coordinator, f"job_{number}") == "policy_approval"
        assert jobs_done(asks) == ["job_2"]
        assert len(approvals.pending(asks.folder, "fed_1")) == 2

    def test_an_id_approved_by_an_earlier_version_is_declined(
        self, asks: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        (asks.folder / "approved.json").write_text(json.dumps({"fed_1": "2026-01-01T00:00:00+00:00"}))
        offer(coordinator, work=CRAFTED)
        with running(asks, identity, http):
            assert self.declined(coordinator, "job_1") == "policy_approval"
        assert jobs_done(asks) == []

    def test_what_cannot_be_kept_is_declined_nevertheless(
        self, asks: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        (asks.folder / "asked").write_text("a file where the folder should be")
        offer(coordinator)
        with running(asks, identity, http):
            assert self.declined(coordinator, "job_1") == "policy_approval"

    def test_nothing_is_kept_where_nobody_is_asked(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        offer(coordinator, dataset="secrets")
        with running(settings, identity, http):
            assert self.declined(coordinator, "job_1") == "data_missing"
        assert not (settings.folder / "asked").exists()
