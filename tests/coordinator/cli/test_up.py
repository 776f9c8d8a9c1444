"""`coordinator up` as a user runs it: real processes, one data folder, kills and restarts."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.installation import Installation, installed
from tests.support.known_agent import check_agent
from tests.support.places import Places
from tests.support.service import created
from worker_agent.settings import AgentSettings


@pytest.fixture(scope="module")
def installation(engine: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("up") / "a data folder"
    with installed(folder, reconcile_seconds=0.5, host="::1" if has_ipv6() else "127.0.0.1") as running:
        yield running


def has_ipv6() -> bool:
    """Whether this machine has the loopback address of IPv6."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].startswith(" Z")


class TestUp:
    def up(self, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """What became of `up` where it cannot run."""
        return subprocess.run(
            [sys.executable, "-m", "coordinator", "up", "--port", "0"],
            env=environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def test_it_is_ready_and_a_key_can_be_made_beside_it(self, installation: Installation) -> None:
        key = installation.run("keys", "create-admin")
        with installation.client(key) as admin:
            assert admin.get("/readyz").json()["status"] == "ready"
            assert admin.post("/v1/organizations", json={"name": "Bank"}).status_code == 201
        assert key not in installation.text_of_log()

    def test_an_agent_reaches_it_over_ipv6(self, installation: Installation, tmp_path: Path) -> None:
        """Where this machine has no IPv6, `up` says so in a sentence."""
        if not has_ipv6():
            done = self.up(installation.environment | {"FEDLOOM_HOST": "::1"})
            assert (done.returncode, "Traceback" in done.stderr) == (1, False)
            assert "error: cannot listen at host '::1'" in done.stderr
            return
        assert installation.url.startswith("http://[::1]:")
        with installation.client(installation.create_admin_key()) as admin:
            path = f"/v1/organizations/{created(admin.post('/v1/organizations', json={'name': 'Klinik'}))['id']}"
            token = created(admin.post(f"{path}/enrollment-tokens", json={}))["token"]
        facts = {"url": installation.url, "folder": tmp_path / "worker", "device": "cpu"}
        check_agent(AgentSettings.model_validate(facts), token)

    @pytest.mark.parametrize("role", ["web", "background", "beat"])
    def test_a_process_that_is_killed_is_started_again(self, installation: Installation, role: str) -> None:
        key = installation.create_admin_key()
        killed = installation.kill(role)
        installation.wait_until_restarted(role, killed)
        installation.wait_until_ready()
        with installation.client(key) as admin:
            assert admin.get("/v1/organizations").status_code == 200

    def test_a_second_one_in_the_same_folder_is_refused(self, installation: Installation) -> None:
        done = self.up(installation.environment)
        assert done.returncode == 1
        assert "Another `coordinator up` runs" in done.stderr

    def test_sigterm_ends_all_of_it_and_what_was_stored_is_there_after_a_start(
        self, engine: Places, tmp_path: Path
    ) -> None:
        with installed(tmp_path / "data") as installation:
            key = installation.create_admin_key()
            with installation.client(key) as admin:
                made = admin.post("/v1/organizations", json={"name": "Bank"}).json()
            pids = [installation.pid_of(role) for role in ("web", "background", "beat")]
            assert installation.stop() == 0
            assert [alive(pid) for pid in pids] == [False, False, False]
            installation.start()
            with installation.client(key) as admin:
                assert admin.get("/v1/organizations").json()["items"] == [made]
