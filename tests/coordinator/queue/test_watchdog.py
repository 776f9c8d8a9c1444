"""A background process without its broker waits for it, and still obeys SIGTERM."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coordinator.addresses import free_port

START_SECONDS = 60.0


@pytest.mark.engines
def test_without_the_broker_it_waits_and_ends_when_told_to(data_folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    environment = os.environ | {"FEDLOOM_BROKER_URL": f"redis://127.0.0.1:{free_port()}/0"}
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "coordinator", "work"], env=environment, stdout=written, stderr=written
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while log.read_text().count("Cannot connect to redis") < 2:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        process.wait(START_SECONDS)
    finally:
        process.kill()
        process.wait()
    assert "Error on" not in log.read_text()
