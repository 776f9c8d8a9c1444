"""Two web processes, two background processes and beat, each started by itself over the same big engines."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coordinator.addresses import free_port
from tests.support.installation import POLLING_SECONDS, START_SECONDS, STOP_SECONDS, Installation, what_is_missing

ROLES = ("web", "web", "background", "background", "beat")
_COMMANDS = {"web": "serve", "background": "work", "beat": "beat"}


class Cluster(Installation):
    """As an operator starts them on several hosts: no supervisor, a data folder for each."""

    def __init__(self, folder: Path, **settings: object) -> None:
        super().__init__(folder, **settings)
        self.ports = [free_port() for role in ROLES if role == "web"]
        self.port = self.ports[0]
        self.processes: list[tuple[str, subprocess.Popen[bytes]]] = []

    def url_of(self, number: int) -> str:
        """The web processes take turns."""
        return f"http://127.0.0.1:{self.ports[number % len(self.ports)]}"

    def start(self) -> None:
        """Starts all processes and waits until both web processes find the others."""
        ports = iter(self.ports)
        for number, role in enumerate(ROLES):
            command = [sys.executable, "-m", "coordinator", _COMMANDS[role], "--data", str(self.folder / str(number))]
            with self.log.open("ab") as log:
                told = ["--port", str(next(ports))] if role == "web" else []
                started = subprocess.Popen([*command, *told], env=self.environment, stdout=log, stderr=log)
            self.processes.append((role, started))
        for number in range(len(self.ports)):
            self._wait_for(self.url_of(number))

    def _wait_for(self, url: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while (problem := what_is_missing(url)) is not None:
            assert all(process.poll() is None for _, process in self.processes), self.text_of_log()
            assert time.monotonic() < deadline, f"not ready: {problem}\n{self.text_of_log()}"
            time.sleep(POLLING_SECONDS)

    def close(self) -> None:
        """SIGTERM to all, and SIGKILL to whoever does not listen."""
        for _, process in self.processes:
            process.terminate()
        for _, process in self.processes:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        super().close()


@contextmanager
def clustered(folder: Path, **settings: object) -> Iterator[Cluster]:
    """A running cluster, ready; `settings` are the coordinator's, by name."""
    cluster = Cluster(folder, **settings)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()
