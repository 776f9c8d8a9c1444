"""Process supervisor of `coordinator up`: restarts its processes, and ends them with itself.

A child that dies is restarted after a pause that doubles from 0.2 s to 10 s. A run of 30 s resets the pause. SIGTERM
or SIGINT to the supervisor ends all children with SIGTERM, then with SIGKILL if they still run after
`grace_seconds`. Children also end if the supervisor itself is killed: each holds the read end of a pipe without
writers, and `watch_parent` ends the child when that pipe closes.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import structlog

from federated.atomic_files import write_file

PIDS_FILE = "pids.json"
PARENT_FD = "FEDLOOM_PARENT_FD"
GRACE_SECONDS = 20.0
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
HEALTHY_SECONDS = 30.0
POLLING_SECONDS = 0.1

_log = structlog.get_logger(__name__)


def pause_seconds(previous_seconds: float, ran_seconds: float) -> float:
    """Pause before a child that ran for `ran_seconds` restarts; `previous_seconds` is 0 after its first run."""
    if previous_seconds == 0 or ran_seconds >= HEALTHY_SECONDS:
        return FIRST_PAUSE_SECONDS
    return min(2 * previous_seconds, LONGEST_PAUSE_SECONDS)


def watch_parent(grace_seconds: float = GRACE_SECONDS) -> None:
    """Ends this process when its supervisor is gone. A supervised child calls it once, at its start.

    Sends SIGTERM, and SIGKILL if the process still runs `grace_seconds` later. Does nothing without a supervisor.
    Removes the pipe's number from the environment, so that a grandchild does not use another file in its place.
    """
    number = os.environ.pop(PARENT_FD, None)
    if number is None:
        return
    pipe = int(number)
    os.set_inheritable(pipe, False)

    def wait_and_end() -> None:
        os.read(pipe, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait_and_end, name="watch-parent", daemon=True).start()


@dataclass
class _Child:
    name: str
    argv: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    pause_seconds: float = 0.0
    starts: int = 0

    def runs(self) -> bool:
        return self.process is not None


class Supervisor:
    """Runs `children` (name -> argv) until a stop signal; `<data_folder>/pids.json` lists the running ones.

    The children inherit the environment and the standard streams. Each leads its own session, so that Ctrl-C in a
    terminal reaches the supervisor alone and the children end once, in order.
    """

    def __init__(
        self, children: Mapping[str, Sequence[str]], data_folder: Path, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        self._children = [_Child(name, argv) for name, argv in children.items()]
        self._pids_file = data_folder / PIDS_FILE
        self._grace_seconds = grace_seconds
        self._stop_signal: signal.Signals | None = None

    def run(self) -> None:
        """Starts the children and returns when all have ended after SIGTERM or SIGINT. Main thread only."""
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        self._pids_file.parent.mkdir(parents=True, exist_ok=True)
        self._read_end, write_end = os.pipe()
        try:
            while self._stop_signal is None:
                for child in self._children:
                    self._tend(child)
                time.sleep(POLLING_SECONDS)
        finally:
            self._stop()
            os.close(self._read_end)
            os.close(write_end)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop_signal = signal.Signals(number)

    def _tend(self, child: _Child) -> None:
        self._notice_death(child)
        if not child.runs() and time.monotonic() >= child.start_at:
            self._start(child)

    def _start(self, child: _Child) -> None:
        environment = {**os.environ, PARENT_FD: str(self._read_end)}
        child.started_at = time.monotonic()
        try:
            child.process = subprocess.Popen(
                child.argv, env=environment, pass_fds=[self._read_end], start_new_session=True
            )
        except OSError as error:
            self._pause(child)
            _log.error("child_not_started", child=child.name, reason=str(error), again_in_seconds=child.pause_seconds)
            return
        child.starts += 1
        self._write_pids()
        event = "child_started" if child.starts == 1 else "child_restarted"
        _log.info(event, child=child.name, pid=child.process.pid, starts=child.starts)

    def _notice_death(self, child: _Child) -> None:
        if child.process is None or child.process.poll() is None:
            return
        process, child.process = child.process, None
        facts = {"child": child.name, "pid": process.pid, "exit_code": process.returncode}
        if self._stop_signal is None:
            self._pause(child)
            _log.warning("child_died", **facts, again_in_seconds=child.pause_seconds)
        else:
            _log.info("child_ended", **facts)
        self._write_pids()

    def _pause(self, child: _Child) -> None:
        now = time.monotonic()
        child.pause_seconds = pause_seconds(child.pause_seconds, now - child.started_at)
        child.start_at = now + child.pause_seconds

    def _stop(self) -> None:
        _log.info("stopping", signal=self._stop_signal and self._stop_signal.name)
        self._send(signal.SIGTERM)
        deadline = time.monotonic() + self._grace_seconds
        while self._alive() and time.monotonic() < deadline:
            time.sleep(POLLING_SECONDS)
        self._send(signal.SIGKILL)
        while self._alive():
            time.sleep(POLLING_SECONDS)
        self._pids_file.unlink(missing_ok=True)

    def _alive(self) -> list[_Child]:
        for child in self._children:
            self._notice_death(child)
        return [child for child in self._children if child.runs()]

    def _send(self, number: signal.Signals) -> None:
        for child in self._alive():
            if child.process is not None:
                _log.info("child_signalled", child=child.name, pid=child.process.pid, signal=number.name)
                child.process.send_signal(number)

    def _write_pids(self) -> None:
        pids = {child.name: child.process.pid for child in self._children if child.process is not None}
        write_file(self._pids_file, json.dumps(pids).encode())
