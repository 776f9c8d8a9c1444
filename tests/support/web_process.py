"""A web process of its own over the settings as they are now: whoever asks it does not share its memory."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coordinator.settings import get_settings

STOP_SECONDS = 30.0


@dataclass(frozen=True)
class WebProcess:
    """`log`: what it writes to standard error, as JSON lines."""

    url: str
    pid: int
    log: Path


@contextmanager
def web_process(log: Path) -> Iterator[WebProcess]:
    """`coordinator serve` on a free port."""
    environment = {**os.environ, "FEDLOOM_LOG_FORMAT": "json", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "coordinator", "serve", "--port", "0"]
    command += ["--data", str(get_settings().data_folder)]
    with log.open("wb") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert "coordinator at http" in first, first + log.read_text(encoding="utf-8")
        yield WebProcess(first.partition(" at ")[2].split()[0], process.pid, log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
