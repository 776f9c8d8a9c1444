"""The supervisor and its children as real processes, ended by real signals."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from coordinator.cli.supervisor import pause_seconds

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[3]

SUPERVISOR = """
import json, sys
from pathlib import Path
from coordinator.cli.supervisor import Supervisor

Supervisor(json.loads(sys.argv[2]), Path(sys.argv[1]), grace_seconds=float(sys.argv[3])).run()
print("supervisor ended", flush=True)
"""

# Says its name when it is ready and how it ended; one that is stubborn lets SIGTERM pass.
CHILD = """
import os, signal, sys, time
from coordinator.cli.supervisor import watch_parent

name, stubborn = sys.argv[1], sys.argv[2] == "stubborn"

def ended(number, frame):
    print(f"{name} got {signal.Signals(number).name}", flush=True)
    if not stubborn:
        sys.exit(0)

signal.signal(signal.SIGTERM, ended)
signal.signal(signal.SIGINT, ended)
watch_parent(grace_seconds=0.5)
print(f"{name} is ready {os.getpid()} {os.environ.get('FEDLOOM_PARENT_FD')}", flush=True)
while True:
    time.sleep(60)
"""


def child(name: str, kind: str = "obedient") -> list[str]:
    return [sys.executable, "-c", CHILD, name, kind]


class Supervised:
    """A supervisor in a process of its own, and what it and its children print into one pipe.

    The pipe ends when the last process that holds it has ended: reading it to its end proves that all are gone.
    """

    def __init__(self, process: subprocess.Popen[str], data_folder: Path) -> None:
        self.process = process
        self.pids_file = data_folder / "pids.json"
        self.printed = ""

    def pids(self) -> dict[str, int]:
        pids: dict[str, int] = json.loads(self.pids_file.read_text())
        return pids

    def read_until(self, holds: Callable[[str], bool]) -> None:
        assert self.process.stdout is not None
        while not holds(self.printed):
            line = self.process.stdout.readline()
            assert line, f"all processes ended early, having printed:\n{self.printed}"
            self.printed += line

    def wait_for(self, text: str, times: int = 1) -> None:
        self.read_until(lambda printed: printed.count(text) >= times)

    def read_to_the_end(self) -> str:
        assert self.process.stdout is not None
        self.printed += self.process.stdout.read()
        return self.printed


@contextmanager
def supervised(data_folder: Path, children: dict[str, list[str]], grace_seconds: float = 20) -> Iterator[Supervised]:
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(data_folder), json.dumps(children), str(grace_seconds)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield Supervised(process, data_folder)
        finally:
            process.kill()


class TestRestart:
    def test_a_killed_child_is_started_again_and_the_others_are_left_alone(self, tmp_path: Path) -> None:
        with supervised(tmp_path, {"web": child("web"), "beat": child("beat")}) as up:
            up.wait_for("child_started", times=2)
            up.wait_for("is ready", times=2)
            before = up.pids()
            os.kill(before["web"], signal.SIGKILL)
            up.wait_for("child_restarted")
            up.wait_for("web is ready", times=2)
            after = up.pids()
            up.process.terminate()
            printed = up.read_to_the_end()
        assert before.keys() == after.keys() == {"web", "beat"}
        assert after["web"] != before["web"]
        assert after["beat"] == before["beat"]
        assert printed.count("beat is ready") == 1
        assert [line.split()[3] for line in printed.splitlines() if line.startswith("web is ready")] == [
            str(before["web"]),
            str(after["web"]),
        ]

    def test_a_child_that_ends_by_itself_is_started_again_each_time(self, tmp_path: Path) -> None:
        with supervised(tmp_path, {"short": [sys.executable, "-c", "print('short ran', flush=True)"]}) as up:
            up.wait_for("short ran", times=3)
            up.process.terminate()
            printed = up.read_to_the_end()
        assert printed.count("child_started") == 1
        assert printed.count("child_restarted") >= 2
        assert "again_in_seconds=0.4" in printed

    def test_a_program_that_cannot_be_started_does_not_stop_the_others(self, tmp_path: Path) -> None:
        missing = str(tmp_path / "missing")
        with supervised(tmp_path, {"missing": [missing], "web": child("web")}) as up:
            up.wait_for("web is ready")
            up.wait_for("child_started")
            up.wait_for("child_not_started", times=2)
            assert up.pids().keys() == {"web"}
            up.process.terminate()
            printed = up.read_to_the_end()
        assert missing in printed

    def test_the_pause_doubles_up_to_ten_seconds_and_is_short_again_after_health(self) -> None:
        pauses = [0.0]
        for _ in range(8):
            pauses.append(pause_seconds(pauses[-1], ran_seconds=1))
        assert pauses == [0, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
        assert pause_seconds(10, ran_seconds=29.9) == 10
        assert pause_seconds(10, ran_seconds=30) == 0.2


class TestEnd:
    def test_a_signal_to_the_supervisor_ends_all_children(self, tmp_path: Path) -> None:
        with supervised(tmp_path, {"web": child("web"), "beat": child("beat")}) as up:
            up.wait_for("is ready", times=2)
            up.process.terminate()
            printed = up.read_to_the_end()
        assert up.process.returncode == 0
        assert printed.count("web got SIGTERM") == printed.count("beat got SIGTERM") == 1
        assert "supervisor ended" in printed
        assert "child_died" not in printed
        assert not up.pids_file.exists()

    def test_ctrl_c_in_a_terminal_ends_each_child_by_one_sigterm(self, tmp_path: Path) -> None:
        with supervised(tmp_path, {"web": child("web"), "beat": child("beat")}) as up:
            up.wait_for("is ready", times=2)
            os.killpg(up.process.pid, signal.SIGINT)
            printed = up.read_to_the_end()
        assert up.process.returncode == 0
        assert printed.count("web got SIGTERM") == 1
        assert printed.count("beat got SIGTERM") == 1
        assert "got SIGINT" not in printed

    def test_a_child_that_lets_sigterm_pass_is_killed_after_the_grace(self, tmp_path: Path) -> None:
        with supervised(tmp_path, {"web": child("web", "stubborn")}, grace_seconds=0.3) as up:
            up.wait_for("web is ready")
            up.process.terminate()
            printed = up.read_to_the_end()
        assert up.process.returncode == 0
        assert "web got SIGTERM" in printed
        assert f"exit_code={-signal.SIGKILL}" in printed

    def test_a_killed_supervisor_takes_its_children_with_it(self, tmp_path: Path) -> None:
        with supervised(tmp_path, {"web": child("web"), "deaf": child("deaf", "stubborn")}) as up:
            up.wait_for("is ready", times=2)
            up.process.kill()
            printed = up.read_to_the_end()
        assert up.process.returncode == -signal.SIGKILL
        assert "web got SIGTERM" in printed
        assert "deaf got SIGTERM" in printed
        assert "supervisor ended" not in printed

    def test_a_child_started_while_its_supervisor_dies_ends_as_soon_as_it_looks(self, tmp_path: Path) -> None:
        slow = "import time; print('slow starts', flush=True); time.sleep(1)\n" + CHILD
        with supervised(tmp_path, {"slow": [sys.executable, "-c", slow, "slow", "obedient"]}) as up:
            up.wait_for("slow starts")
            up.process.kill()
            printed = up.read_to_the_end()
        assert "slow got SIGTERM" in printed


class TestWatching:
    def test_watching_does_nothing_in_a_process_started_by_hand(self) -> None:
        program = "from coordinator.cli.supervisor import watch_parent; watch_parent(); print('goes on')"
        environment = {name: value for name, value in os.environ.items() if name != "FEDLOOM_PARENT_FD"}
        printed = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, env=environment, text=True)
        assert printed == "goes on\n"

    def test_a_child_that_watches_does_not_hand_the_number_of_the_pipe_on(self, tmp_path: Path) -> None:
        with supervised(tmp_path, {"web": child("web")}) as up:
            up.wait_for("web is ready")
            up.process.terminate()
            printed = up.read_to_the_end()
        assert re.search(r"web is ready \d+ None", printed)
