"""Background tasks in a process of their own, one turn at a time: `python -m tests.fuzz.background`.

Each line of its input, `settle` or `reconcile`, runs tasks until there are none; it answers each with how many ran.
Steps of rounds are computed in a third process, as an installation's are.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.federation_rig import FederationRig
from tests.support.service import Service

STOP_SECONDS = 30.0


class Broken(Exception):
    """A task raised an error, or its process ended; the log has more of it."""


class Background:
    """The process, from without. `log`: what it writes to standard error."""

    def __init__(self, log: Path) -> None:
        self.log = log
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.fuzz.background"]
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def ask(self, turn: str) -> int:
        """How many tasks ran. Raises Broken."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(turn, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise Broken("the background process has ended") from None
        answer = self.process.stdout.readline().strip()
        if not answer.isdecimal():
            raise Broken(answer or "the background process has ended")
        return int(answer)

    def steps_pid(self) -> int:
        """The process that computes steps. Raises psutil.NoSuchProcess."""
        for child in psutil.Process(self.process.pid).children():
            return int(child.pid)
        raise psutil.NoSuchProcess(self.process.pid, "process of steps")

    def close(self) -> None:
        """Ends it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class BackgroundRig(FederationRig):
    """A rig whose background tasks run in a process of their own."""

    def __init__(self, service: Service, background: Background) -> None:
        super().__init__(service)
        self._background = background

    def settle(self) -> int:
        return self._background.ask("settle")

    def reconcile(self) -> None:
        self._background.ask("reconcile")


@contextmanager
def background(log: Path) -> Iterator[Background]:
    """The process, ready."""
    process = Background(log)
    try:
        process.ask("settle")
        yield process
    finally:
        process.close()


def main() -> None:
    """Serve until there is no more input."""
    from coordinator.celery_app import load_tasks
    from coordinator.queue.wakeups import celery
    from coordinator.rounds import step_pool
    from coordinator.telemetry import logs
    from federated.private_files import keep_private
    from tests.support.queue import run_all

    keep_private()
    logs.configure("json", "background")
    load_tasks()
    with step_pool.running(1):
        for line in sys.stdin:
            try:
                if line.strip() == "reconcile":
                    celery.tasks["federations.reconcile"]()
                print(run_all(), flush=True)
            except Exception as error:  # whoever asks decides what it means
                logs_of_error(error)
                print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)


def logs_of_error(error: Exception) -> None:
    """The whole of it."""
    import structlog

    structlog.get_logger(__name__).error("task_failed", exc_info=error)


if __name__ == "__main__":
    main()
