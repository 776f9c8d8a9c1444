"""An installation on this machine: a coordinator and one worker agent per organization, as real processes."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from coordinator.addresses import free_port
from examples.quickstart.rest import Api

START_SECONDS = 90.0
STOP_SECONDS = 30.0


@dataclass(frozen=True)
class Member:
    """A participating organization: its id, its API key, and the id of its worker."""

    name: str
    organization_id: str
    api_key: str
    worker_id: str


class InstallationError(SystemExit):
    """A failed command or start. The text is for the user."""


@dataclass
class Installation:
    """Processes and keys. A context manager, which at its end stops every process that it started.

    `environment`: variables of the processes in addition to those of this one, such as `FEDLOOM_DATABASE_URL`.
    """

    folder: Path
    url: str = ""
    admin_key: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Self:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._start(
            "coordinator", ["coordinator", "up", "--data", str(self.folder / "coordinator"), "--port", str(port)]
        )
        try:
            self._wait_until_ready()
            self.admin_key = self._run(
                ["coordinator", "keys", "create-admin", "--data", str(self.folder / "coordinator")]
            )
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def join(self, name: str, worker: Mapping[str, Any]) -> Member:
        """Create an organization with an API key, enroll its worker with these settings, and start the worker."""
        admin = Api.with_key(self.url, self.admin_key)
        organization, (key,) = admin.new_organization(name, "owner")
        admin.close()
        owner = Api.with_key(self.url, key)
        token = owner("POST", f"/v1/organizations/{organization}/enrollment-tokens", {"name": "demo"})["token"]
        owner.close()
        folder = self.folder / name
        config = write_settings(folder, {"url": self.url, "name": name, "folder": "state", **worker})
        self._run(["worker_agent", "enroll", "--config", str(config)], FEDLOOM_ENROLLMENT_TOKEN=token)
        self._start(f"{name}.worker", ["worker_agent", "run", "--config", str(config)])
        return Member(name, organization, key, self._worker_of(key))

    def _worker_of(self, key: str) -> str:
        api = Api.with_key(self.url, key)
        (worker,) = api("GET", "/v1/workers")["items"]
        api.close()
        return str(worker["id"])

    def _start(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self._environment(),
            )
        self._processes.append(process)

    def _run(self, command: list[str], **environment: str) -> str:
        process = subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True,
            text=True,
            env=self._environment() | environment,
            check=False,
            timeout=START_SECONDS,
        )
        if process.returncode:
            raise InstallationError(f"{' '.join(command)} failed:\n{process.stdout}{process.stderr}")
        return process.stdout.strip()

    def _environment(self) -> dict[str, str]:
        quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        return {**os.environ, **quiet, **self.environment}

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._processes[0].poll() is not None:
                raise InstallationError(
                    f"the coordinator ended during its start; see {self.folder / 'coordinator.log'}"
                )
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise InstallationError(f"the coordinator did not become ready; see {self.folder / 'coordinator.log'}")


def write_settings(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Write a worker's settings as TOML into its folder, with mappings as inline tables."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "worker-agent.toml"
    file.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in settings.items()), encoding="utf-8")
    return file


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
