"""All of `coordinator up` as real processes, in a data folder of its own, on a free port."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from coordinator.db.sessions import utcnow, writing
from coordinator.organizations.service import create_admin_key
from tests.support.places import Places, places, within
from tests.support.service import TLS, Bearer

START_SECONDS = 120.0
STOP_SECONDS = 60.0
POLLING_SECONDS = 0.1


def what_is_missing(url: str) -> str | None:
    """What a web process says that is not ready; None if it is."""
    try:
        answer = httpx.get(f"{url}/readyz", timeout=10, trust_env=False, verify=TLS)
    except httpx.TransportError as error:
        return repr(error)
    return None if answer.status_code == 200 else answer.text


class Installation:
    """`coordinator up` over `folder`: the port is chosen by the first start and kept by later ones."""

    def __init__(self, folder: Path, at: Places | None = None, **settings: object) -> None:
        self.folder = folder
        self.port = 0
        self.address = "[::1]" if settings.get("host") == "::1" else "127.0.0.1"
        self._places = at or places()
        self._place = self._places.for_up(folder)
        self.environment = {
            **os.environ,
            **self._place,
            "FEDLOOM_LOG_FORMAT": "json",
            "OMP_NUM_THREADS": "1",
            **{f"FEDLOOM_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.log = folder.with_name(folder.name + ".log")

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    def url_of(self, number: int) -> str:
        """Where one of many callers reaches it."""
        return self.url

    def run(self, *arguments: str) -> str:
        """Standard output of one `coordinator …` command that must succeed."""
        done = subprocess.run(
            [sys.executable, "-m", "coordinator", *arguments],
            env=self.environment, capture_output=True, text=True, check=False, timeout=START_SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self) -> None:
        """Starts `up` and waits until it is ready."""
        before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "coordinator", "up", "--port", str(self.port)],
                env=self.environment, stdout=log, stderr=log,
            )  # fmt: skip
        self.wait_until_ready(before)

    def wait_until_ready(self, log_offset: int = 0) -> None:
        """Waits until every part of the installation is there."""
        deadline = time.monotonic() + START_SECONDS
        problem: str | None = "no answer"
        while time.monotonic() < deadline:
            assert self._process is not None
            assert self._process.poll() is None, self.text_of_log()
            if self.port == 0:
                self._read_port(log_offset)
            else:
                problem = what_is_missing(self.url)
                if problem is None:
                    return
            time.sleep(POLLING_SECONDS)
        raise AssertionError(f"not ready: {problem}\n{self.text_of_log()}")

    def _read_port(self, log_offset: int) -> None:
        marker = f"Fedloom coordinator at http://{self.address}:"
        for line in self.log.read_bytes()[log_offset:].decode().splitlines():
            if line.startswith(marker):
                self.port = int(line.removeprefix(marker).split()[0])

    def text_of_log(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def pid_of(self, role: str) -> int:
        """Process id of the web, background or beat process as it runs now; waits while it is being restarted."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                pids: dict[str, int] = json.loads((self.folder / "pids.json").read_text(encoding="utf-8"))
                return pids[role]
            except (FileNotFoundError, KeyError):
                time.sleep(POLLING_SECONDS)
        raise AssertionError(f"{role} does not run\n{self.text_of_log()}")

    def kill(self, role: str) -> int:
        """SIGKILL to the web, background or beat process; the supervisor starts another. Returns the pid."""
        pid = self.pid_of(role)
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_until_restarted(self, role: str, killed_pid: int) -> None:
        """Waits until another process has the role."""
        deadline = time.monotonic() + START_SECONDS
        while self.pid_of(role) == killed_pid:
            assert time.monotonic() < deadline, self.text_of_log()
            time.sleep(POLLING_SECONDS)

    def stop(self) -> int:
        """SIGTERM to `up`; its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(STOP_SECONDS)

    def kill_supervisor(self) -> None:
        """SIGKILL to `up` itself; its children notice and end."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_SECONDS)

    def close(self) -> None:
        """Leaves nothing running, whatever the test did."""
        if self._process is not None and self._process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill_supervisor()
        self._places.leave(self._place)

    def create_admin_key(self) -> str:
        """As `coordinator keys create-admin` does, without the process."""
        with within(self.environment), writing() as session:
            return create_admin_key(session, "tests", utcnow())

    def client(self, key: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, auth=Bearer(key), timeout=60, trust_env=False, verify=TLS)


@contextmanager
def installed(folder: Path, at: Places | None = None, **settings: object) -> Iterator[Installation]:
    """A running installation, ready; `settings` are the coordinator's, by name.

    `at`: elsewhere than the rest of this run.
    """
    installation = Installation(folder, at, **settings)
    try:
        installation.start()
        yield installation
    finally:
        installation.close()
