"""Texts from outside on a terminal: they are displayed and never interpreted."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from federated.protocol import JobProgress
from tests.support.bad_texts import SHOWN
from tests.worker_agent.faults import Fault
from tests.worker_agent.leases import make_lease
from tests.worker_agent.recording_coordinator import RecordingCoordinator
from worker_agent.__main__ import TOKEN_VARIABLE, app
from worker_agent.display import Bars

TEXTS = pytest.mark.parametrize("text", SHOWN.values(), ids=list(SHOWN))
# What rich itself writes: colors, and moving about to draw the bars anew.
_OWN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]")
LOG = """
import sys
import structlog
from {configured} import {name}
{call}
log = structlog.get_logger("ours")
text = {text!a}
log.warning("job_failed", reason=text, metrics={{text: 1.0}})
try:
    raise ValueError(text)
except ValueError:
    log.exception("job_broke")
"""


def assert_inert(output: str) -> None:
    left = _OWN.sub("", output)
    assert left.isprintable(), ascii(left[:500])
    assert "evil.example" not in output.replace("[link=https://evil.example]", "")


@TEXTS
def test_a_bar_shows_names_as_text(text: str) -> None:
    written = io.StringIO()
    bars = Bars(Console(file=written, force_terminal=True, width=300, color_system=None))
    bars.start_job(0, make_lease(federation_name=text, dataset=text))
    progress = JobProgress(done=1, total=2)  # an algorithm's own, whose names nobody has looked at
    bars.show_progress(0, progress.model_copy(update={"metrics": {text: 0.5}}))
    bars.close()
    assert_inert(written.getvalue())
    assert "1/3 train" in written.getvalue()


@TEXTS
@pytest.mark.parametrize(
    "how",
    [
        {"configured": "worker_agent.display", "name": "configure_logs", "call": "configure_logs(terminal=True)"},
        {"configured": "coordinator.telemetry", "name": "logs", "call": "logs.configure('console', 'tests')"},
    ],
    ids=["worker-agent", "coordinator"],
)
def test_a_console_log_shows_values_as_text(how: dict[str, str], text: str) -> None:
    program = LOG.format(text=text[:3000], **how)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)
    output = done.stderr.decode()
    assert_inert(output)
    assert not [line for line in output.splitlines() if line.startswith("ok ")]
    assert "ValueError" in output


class TestCommands:
    @pytest.fixture
    def config(self, tmp_path: Path, coordinator: RecordingCoordinator) -> Path:
        file = tmp_path / "worker-agent.toml"
        file.write_text(f'url = "{coordinator.url}"\nname = "node"\nfolder = "worker"\ndevice = "cpu"\n')
        return file

    @TEXTS
    def test_what_the_coordinator_says_is_shown_as_text(
        self, config: Path, coordinator: RecordingCoordinator, text: str
    ) -> None:
        # An error document above the bound of the agent is no answer at all.
        said = text.replace("\ud800", "?")[:10_000]
        runner, given = CliRunner(env={"COLUMNS": "200"}), ["--config", str(config)]
        refusal = Fault(401, body={"code": "no", "detail": said})
        coordinator.fail("POST /v1/workers/enroll", refusal)
        refused = runner.invoke(app, ["enroll", *given], env={TOKEN_VARIABLE: "fle_0123456789"})
        assert runner.invoke(app, ["enroll", *given], env={TOKEN_VARIABLE: "fle_0123456789"}).exit_code == 0
        coordinator.fail("GET /v1/workers/me", refusal)
        examined = runner.invoke(app, ["doctor", *given])
        approved = runner.invoke(app, ["approve", said, *given])
        for result in (refused, examined, approved):
            assert result.exit_code == 1
            assert_inert(result.output)
            assert not [line for line in result.output.splitlines() if line.startswith("ok    key: all is well")]
