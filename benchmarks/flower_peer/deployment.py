"""Deployment of the Flower app in `app/` as users of Flower do it: one SuperLink, and one SuperNode per client."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from benchmarks.round_times import RoundTimes
from coordinator.addresses import free_port

APP = Path(__file__).parent / "app"
START_SECONDS = 60.0
STOP_SECONDS = 20.0
# Flower starts a process per client and round, which loads the model: a round takes many seconds beside training.
ROUND_SECONDS = 120.0


class PeerError(RuntimeError):
    """Flower did not run to its end. The message names its logs."""


@dataclass(frozen=True)
class Deployment:
    """Flower's processes of one run. `environment` is the virtual environment, `folder` holds state and logs."""

    environment: Path
    folder: Path

    def measure(self, task: Mapping[str, Any], rows: Sequence[Path]) -> list[RoundTimes]:
        """Train `task` with one client per file of `rows`. Raises PeerError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rounds_file = self.folder / "rounds.jsonl"
        task_file = self.folder / "task.json"
        whole = {**task, "clients": len(rows), "rounds_file": str(rounds_file)}
        task_file.write_text(json.dumps(whole), encoding="utf-8")
        with ExitStack() as running:
            self._start(running, rows)
            self._submit(task_file)
            return self._wait(rounds_file, task["rounds"])

    def _submit(self, task_file: Path) -> None:
        command = self._command("flwr", "run", str(APP), "local", "--run-config", f'task="{task_file}"')
        process = subprocess.run(command, env=self._variables(), check=False, capture_output=True, text=True)
        if process.returncode:
            raise PeerError(f"flwr run ended with {process.returncode}: {process.stdout}{process.stderr}")

    def _start(self, running: ExitStack, rows: Sequence[Path]) -> None:
        port = free_port()
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        connection = (
            f'[superlink]\ndefault = "local"\n[superlink.local]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        (home / "config.toml").write_text(connection, encoding="utf-8")
        link = ["--insecure", "--port", str(port), "--disable-runtime-dependency-installation"]
        running.enter_context(self._process("flower-superlink", "superlink", link))
        _wait_for_port(port)
        for number, file in enumerate(rows):
            own = ["--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port())]
            name = f"supernode-{number}"
            running.enter_context(self._process("flower-supernode", name, [*own, "--node-config", f'rows="{file}"']))

    def _process(self, program: str, name: str, arguments: Sequence[str]) -> "_Process":
        return _Process(self._command(program, *arguments), self.folder / f"{name}.log", self._variables())

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [str(self.environment / "bin" / program), *arguments]

    def _variables(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}},
            "PATH": f"{self.environment / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_HOME": str(self.folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }

    def _wait(self, rounds_file: Path, rounds: int) -> list[RoundTimes]:
        rounds_so_far: list[RoundTimes] = []
        deadline = time.monotonic() + START_SECONDS + ROUND_SECONDS
        while len(rounds_so_far) < rounds:
            if time.monotonic() > deadline:
                raise PeerError(f"no round of Flower ended within {ROUND_SECONDS:.0f} s; logs in {self.folder}")
            time.sleep(0.2)
            lines = self._read(rounds_file)
            if len(lines) > len(rounds_so_far):
                rounds_so_far, deadline = lines, time.monotonic() + ROUND_SECONDS
        return rounds_so_far

    def _read(self, rounds_file: Path) -> list[RoundTimes]:
        text = rounds_file.read_text(encoding="utf-8") if rounds_file.is_file() else ""
        lines = [json.loads(line) for line in text.split("\n")[:-1]]
        for line in lines:
            if line["failed"] or not line["training"]:
                raise PeerError(f"round {line['round']} of Flower: {line['failed']}; logs in {self.folder}")
        return [RoundTimes(line["round"], line["ended"], max(line["training"])) for line in lines]


class _Process:
    """A process that ends with all of its children, as Flower's check for their parent only now and then."""

    def __init__(self, command: Sequence[str], log: Path, variables: Mapping[str, str]) -> None:
        self._start = (command, log, variables)

    def __enter__(self) -> Self:
        command, log, variables = self._start
        with log.open("ab") as out:
            self._process = psutil.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=variables)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        family = [self._process]
        with suppress(psutil.NoSuchProcess):
            family += self._process.children(recursive=True)
            self._process.terminate()
        _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=STOP_SECONDS)


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise PeerError(f"the SuperLink did not listen on port {port} within {START_SECONDS:.0f} s")
