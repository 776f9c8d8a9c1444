"""Resource usage of another process, and this package's programs as child processes (Linux)."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from benchmarks.memory import Sampling, anonymous_bytes

_SAMPLE_SECONDS = 0.5
_STOP_SECONDS = 30.0


def _processor_seconds(pid: int) -> float:
    """User and system time of all threads of the process, in seconds."""
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


class Usage(Sampling):
    """A context that samples the memory of a process and measures its processor time."""

    def __init__(self, pid: int) -> None:
        super().__init__(_SAMPLE_SECONDS)
        self._pid = pid
        self.samples: list[int] = []

    def __enter__(self) -> Self:
        self._start = time.monotonic(), _processor_seconds(self._pid)
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        start, start_seconds = self._start
        self.processor_share = (_processor_seconds(self._pid) - start_seconds) / (time.monotonic() - start)

    def sample(self) -> None:
        self.samples.append(anonymous_bytes(self._pid))

    def growth_bytes(self) -> int:
        """Largest growth above the first sample."""
        return max(self.samples) - self.samples[0]

    def growth_in_the_end_bytes(self) -> int:
        """Maximum of the last third of the samples, less that of the first two thirds."""
        cut = 2 * len(self.samples) // 3
        return max(self.samples[cut:]) - max(self.samples[:cut] or self.samples)


class ProcessorTime:
    """A context that measures the processor time of processes and their descendants, by name."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self.shares: dict[str, float] = {}
        """Name -> processor seconds per second."""

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        self._seconds = {name: _family_seconds(pid) for name, pid in self._pids.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        elapsed = time.monotonic() - self._start
        self.shares = {
            name: max(0.0, _family_seconds(pid) - self._seconds[name]) / elapsed for name, pid in self._pids.items()
        }


def _family_seconds(pid: int) -> float:
    """Processor seconds of a process, its descendants, and its children that have ended."""
    process = psutil.Process(pid)
    total = 0.0
    for member in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = member.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def start(
    module: str, parameters: Mapping[str, Any], folder: Path, environment: Mapping[str, str]
) -> subprocess.Popen[str]:
    """Start `python -m benchmarks.load.<module>` with JSON parameters. Its last line is its report."""
    with (folder / f"{module}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.load.{module}", json.dumps(parameters)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=dict(environment),
        )


@contextmanager
def terminating(process: "subprocess.Popen[Any]") -> Iterator[None]:
    """A context that terminates the process at its end."""
    try:
        yield
    finally:
        process.terminate()
        process.wait(_STOP_SECONDS)


def leave_on_sigterm() -> None:
    """Let SIGTERM raise SystemExit, so that every context is left and ends its processes."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def read_report(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The report on the last line of a process. Raises SystemExit if the process failed."""
    output = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{process.args!r:.200} ended with {process.returncode}")
    document: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return document
