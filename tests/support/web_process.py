"""A web process of its own over the settings as they are now: whoever asks it does not share its memory."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from coordinator.settings import get_settings

START_SECONDS = 120.0
STOP_SECONDS = 30.0
POLLING_SECONDS = 0.02


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
        url = first.partition(" at ")[2].split()[0]
        _wait_for(url, process)
        yield WebProcess(url, process.pid, log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(url: str, process: "subprocess.Popen[str]") -> None:
    """Waits until it answers: it says where it is before it listens there."""
    until = time.monotonic() + START_SECONDS
    while not answers(url):
        assert process.poll() is None, "the web process has ended"
        assert time.monotonic() < until, "the web process does not answer"
        time.sleep(POLLING_SECONDS)


def answers(url: str) -> bool:
    """Whether a web process answers there."""
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).is_success
    except httpx.TransportError:
        return False
