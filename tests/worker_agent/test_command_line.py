"""The commands as the owner of a node types them."""

import json
from base64 import urlsafe_b64decode
from pathlib import Path

import pytest
from typer.testing import CliRunner

from federated.protocol import MAX_ENROLLMENT_BYTES
from federated.signed_statement import enrollment_message
from tests.support.foreign import make_foreign
from tests.worker_agent.faults import Fault
from tests.worker_agent.recording_coordinator import RecordingCoordinator
from worker_agent.__main__ import TOKEN_VARIABLE, app
from worker_agent.coordinator_api.identity import load_identity
from worker_agent.settings import DATA_ENTRIES

TOKEN = "fle_0123456789abcdef"
ENROLL = "POST /v1/workers/enroll"


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def config(tmp_path: Path, coordinator: RecordingCoordinator) -> Path:
    """Settings of a node whose data set is there and whose model is not."""
    rows = [{"text": f"message {number}", "label": "yes" if number % 4 else "no"} for number in range(50)]
    (tmp_path / "messages.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = tmp_path / "worker-agent.toml"
    file.write_text(
        f'url = "{coordinator.url}"\nname = "node"\nfolder = "worker"\ndevice = "cpu"\n'
        'models = {small = "no-such-folder"}\n[datasets.messages]\npath = "messages.jsonl"\n'
    )
    return file


class TestEnroll:
    def test_a_token_from_a_file_makes_a_worker(
        self, runner: CliRunner, config: Path, coordinator: RecordingCoordinator, tmp_path: Path
    ) -> None:
        (tmp_path / "token").write_text(TOKEN + "\n")
        result = runner.invoke(app, ["enroll", "--token-file", str(tmp_path / "token"), "--config", str(config)])
        assert result.exit_code == 0, result.output
        assert "wkr_1 of Clinic" in result.output
        record = load_identity(tmp_path / "worker").record
        assert (record.worker_id, record.url.rstrip("/"), record.name) == ("wkr_1", coordinator.url, "node")
        sent = coordinator.body_of(ENROLL)
        assert (sent["token"], sent["name"]) == (TOKEN, "node")
        message = enrollment_message(TOKEN, "node", sent["public_key"])
        load_identity(tmp_path / "worker").key.public_key().verify(urlsafe_b64decode(sent["proof"] + "=="), message)

    def test_a_token_from_the_environment_is_taken(
        self, runner: CliRunner, config: Path, coordinator: RecordingCoordinator
    ) -> None:
        result = runner.invoke(app, ["enroll", "--config", str(config)], env={TOKEN_VARIABLE: TOKEN})
        assert result.exit_code == 0, result.output
        assert coordinator.body_of(ENROLL)["token"] == TOKEN

    def test_otherwise_it_is_asked_for_and_not_shown(
        self, runner: CliRunner, config: Path, coordinator: RecordingCoordinator
    ) -> None:
        arguments = ["enroll", "--url", coordinator.url, "--config", str(config)]
        result = runner.invoke(app, arguments, input=TOKEN + "\n")
        assert result.exit_code == 0, result.output
        assert TOKEN not in result.output
        assert coordinator.body_of(ENROLL)["token"] == TOKEN

    def test_more_data_sets_than_a_stranger_may_name_are_told_with_the_first_heartbeat(
        self, runner: CliRunner, config: Path, coordinator: RecordingCoordinator
    ) -> None:
        more = "".join(f'[datasets.{"d" * 60}{number}]\npath = "messages.jsonl"\n' for number in range(400))
        config.write_text(config.read_text() + more)
        result = runner.invoke(app, ["enroll", "--config", str(config)], env={TOKEN_VARIABLE: TOKEN})
        assert result.exit_code == 0, result.output
        sent = coordinator.body_of(ENROLL)
        assert len(json.dumps(sent)) < MAX_ENROLLMENT_BYTES
        assert (sent["capabilities"]["datasets"], sent["capabilities"]["slots"]) == ([], 1)

    def test_a_used_up_token_is_told_and_nothing_is_kept(
        self, runner: CliRunner, config: Path, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail(ENROLL, Fault(401, body={"code": "token_used_up", "detail": "Ask for a new one."}))
        arguments = ["enroll", "--config", str(config)]
        refused = runner.invoke(app, arguments, env={TOKEN_VARIABLE: TOKEN})
        assert refused.exit_code == 1
        assert "Ask for a new one." in refused.output
        assert runner.invoke(app, arguments, env={TOKEN_VARIABLE: TOKEN}).exit_code == 0

    def test_a_worker_is_not_enrolled_twice(
        self, runner: CliRunner, config: Path, coordinator: RecordingCoordinator
    ) -> None:
        arguments = ["enroll", "--config", str(config)]
        runner.invoke(app, arguments, env={TOKEN_VARIABLE: TOKEN})
        again = runner.invoke(app, arguments, env={TOKEN_VARIABLE: TOKEN})
        assert again.exit_code == 1
        assert "is worker wkr_1" in again.output
        assert coordinator.count(ENROLL) == 1

    def test_a_token_too_short_to_be_one_is_not_sent(
        self, runner: CliRunner, config: Path, coordinator: RecordingCoordinator
    ) -> None:
        result = runner.invoke(app, ["enroll", "--config", str(config)], env={TOKEN_VARIABLE: "short"})
        assert result.exit_code == 1
        assert "token: " in result.output
        assert coordinator.count(ENROLL) == 0


class TestDoctor:
    def enrolled(self, runner: CliRunner, config: Path) -> None:
        runner.invoke(app, ["enroll", "--config", str(config)], env={TOKEN_VARIABLE: TOKEN})

    def test_the_step_that_fails_is_named(self, runner: CliRunner, config: Path) -> None:
        self.enrolled(runner, config)
        result = runner.invoke(app, ["doctor", "--config", str(config)])
        assert result.exit_code == 1
        lines = result.output.splitlines()
        steps = ["folder", "key", "url", "tls", "clock", "coordinator knows this worker", "algorithms", "device"]
        assert [line for line in lines if line.startswith("FAILED")] == [lines[len(steps)]]
        assert [line.removeprefix("ok").strip().partition(":")[0] for line in lines[: len(steps)]] == steps
        assert lines[len(steps)].startswith("FAILED model small: model_missing")
        assert lines[-2].endswith("data messages: 40 rows to train on, 10 held out")
        assert lines[-1] == "failed: model small"

    def test_a_node_that_was_not_enrolled_is_told_so(self, runner: CliRunner, config: Path) -> None:
        result = runner.invoke(app, ["doctor", "--config", str(config)])
        assert "FAILED key: " in result.output
        assert "worker-agent enroll" in result.output

    def test_a_wrong_clock_is_named(self, runner: CliRunner, config: Path, coordinator: RecordingCoordinator) -> None:
        coordinator.clock_offset_seconds = 3600
        result = runner.invoke(app, ["doctor", "--config", str(config)])
        assert "FAILED clock: this clock is -3600 s off" in result.output.replace("-3599", "-3600")

    def test_a_revoked_worker_is_named(
        self, runner: CliRunner, config: Path, coordinator: RecordingCoordinator
    ) -> None:
        self.enrolled(runner, config)
        coordinator.fail(
            "GET /v1/workers/me", Fault(401, body={"code": "worker_revoked", "detail": "Enroll it again."})
        )
        result = runner.invoke(app, ["doctor", "--config", str(config)])
        assert "FAILED coordinator knows this worker: 401 worker_revoked: Enroll it again." in result.output

    def test_a_second_agent_with_its_key_is_named_with_what_to_do(
        self, runner: CliRunner, config: Path, coordinator: RecordingCoordinator
    ) -> None:
        self.enrolled(runner, config)
        coordinator.doubled_at = "2026-01-02T03:04:05Z"
        result = runner.invoke(app, ["doctor", "--config", str(config)])
        advice = "the coordinator refused another agent with this worker's key"
        assert f"FAILED no second agent: 2026-01-02 03:04 UTC: {advice}" in result.output
        assert "worker-agent rotate-key" in result.output

    def test_a_store_that_is_not_listed_is_named_with_what_to_add(
        self, runner: CliRunner, config: Path, coordinator: RecordingCoordinator
    ) -> None:
        self.enrolled(runner, config)
        coordinator.store_origins = ["https://s3.example.org", "https://a\x1b[31m.example", "file:///etc"]
        output = runner.invoke(app, ["doctor", "--config", str(config)]).output
        slower = "not in hosts; transfers go through the coordinator (slower)"
        advice = 'to allow it add hosts = ["https://s3.example.org"]'
        assert f"ok     store: https://s3.example.org: {slower}; {advice}" in output
        assert output.count("store:") == 1
        config.write_text('hosts = ["https://s3.example.org"]\n' + config.read_text())
        output = runner.invoke(app, ["doctor", "--config", str(config)]).output
        assert "ok     store: https://s3.example.org: in hosts; transfers use it directly" in output

    def test_a_host_that_speaks_no_tls_is_named(
        self, runner: CliRunner, config: Path, coordinator: RecordingCoordinator
    ) -> None:
        config.write_text(config.read_text().replace("http://", "https://"))
        result = runner.invoke(app, ["doctor", "--config", str(config)])
        assert "ok     url: https://" in result.output
        assert "FAILED tls: " in result.output

    def test_a_host_that_is_not_there_is_named(self, runner: CliRunner, config: Path) -> None:
        config.write_text(config.read_text().replace("http://127.0.0.1:", "http://127.0.0.1:1/"))
        result = runner.invoke(app, ["doctor", "--config", str(config)])
        assert "FAILED url: http://127.0.0.1:1/" in result.output


class TestOpenFolder:
    @pytest.mark.parametrize(
        "command",
        [["enroll"], ["run"], ["rotate-key"], ["approve", "fed_1"], ["export", "fed_1", "clt_1", "out"]],
        ids=" ".join,
    )
    @pytest.mark.parametrize("name", ["", *DATA_ENTRIES])
    def test_no_command_works_in_a_folder_that_others_may_read(
        self, runner: CliRunner, config: Path, coordinator: RecordingCoordinator, command: list[str], name: str
    ) -> None:
        folder = config.parent / "worker"
        folder.mkdir()
        (folder / name).mkdir(exist_ok=True)
        (folder / name).chmod(0o750)
        result = runner.invoke(app, [*command, "--config", str(config)], env={TOKEN_VARIABLE: TOKEN})
        assert result.exit_code == 1
        said = f"{folder / name} is open to other users of this machine (mode 0750); run: chmod -R go-rwx"
        assert said in result.output
        assert coordinator.calls == []

    def test_the_doctor_names_it(self, runner: CliRunner, config: Path) -> None:
        (config.parent / "worker").mkdir(0o755)
        (config.parent / "worker").chmod(0o755)
        result = runner.invoke(app, ["doctor", "--config", str(config)])
        assert "FAILED folder: " in result.output
        assert "chmod -R go-rwx" in result.output

    def test_a_folder_of_another_user_is_refused(self, runner: CliRunner, config: Path) -> None:
        (config.parent / "worker").mkdir()
        make_foreign(config.parent / "worker")
        result = runner.invoke(app, ["run", "--config", str(config)])
        assert result.exit_code == 1
        assert "belongs to" in result.output


class TestDataShow:
    def test_rows_and_label_counts_are_shown_and_nothing_is_sent(
        self, runner: CliRunner, config: Path, coordinator: RecordingCoordinator
    ) -> None:
        config.write_text(config.read_text().replace('models = {small = "no-such-folder"}\n', ""))
        result = runner.invoke(app, ["data", "show", "messages", "--config", str(config)])
        assert result.exit_code == 0, result.output
        assert "40 rows to train on, 10 held out" in result.output
        assert [line.split()[1:4:2] for line in result.output.splitlines() if "│ yes" in line] == [["yes", "37"]]
        assert coordinator.calls == []

    def test_an_unknown_name_is_told_with_those_there_are(self, runner: CliRunner, config: Path) -> None:
        result = runner.invoke(app, ["data", "show", "secrets", "--config", str(config)])
        assert result.exit_code == 1
        assert "no data set 'secrets'; there are: messages" in result.output

    def test_a_broken_file_is_told(self, runner: CliRunner, config: Path, tmp_path: Path) -> None:
        config.write_text(config.read_text().replace('models = {small = "no-such-folder"}\n', ""))
        (tmp_path / "messages.jsonl").write_text("{")
        result = runner.invoke(app, ["data", "show", "messages", "--config", str(config)])
        assert result.exit_code == 1
        assert "data set 'messages'" in result.output


def test_run_without_a_worker_says_what_to_do(runner: CliRunner, config: Path) -> None:
    result = runner.invoke(app, ["run", "--config", str(config)])
    assert result.exit_code == 1
    assert "run: worker-agent enroll" in result.output


@pytest.mark.parametrize(
    ("line", "reason"),
    [("slots = 0\n", "slots: "), ("solts = 1\n", "solts: "), ("= nonsense\n", "settings: ")],
)
def test_a_mistake_in_the_settings_names_the_field(runner: CliRunner, config: Path, line: str, reason: str) -> None:
    config.write_text(line + config.read_text())
    result = runner.invoke(app, ["approve", "fed_1", "--config", str(config)])
    assert result.exit_code == 1
    assert reason in result.output


def test_the_version_is_shown(runner: CliRunner) -> None:
    result = runner.invoke(app, ["version"])
    assert result.exit_code == 0
    assert result.output.strip()


def test_the_version_is_an_option_too(runner: CliRunner) -> None:
    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, runner.invoke(app, ["version"]).output)


def test_help_begins_with_a_summary_and_names_defaults(runner: CliRunner) -> None:
    summary = next(line for line in runner.invoke(app, ["--help"]).output.splitlines()[2:] if line.strip())
    assert summary.split()[:2] == ["Train", "for"]
    assert "worker-agent.toml" in runner.invoke(app, ["run", "--help"]).output
