"""Statistics, HTTP callers and termination of the load benchmarks."""

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from benchmarks.control_plane import percentile
from benchmarks.load.http import Caller
from benchmarks.load.speed import Speed
from benchmarks.transfer import Source, ratio


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([], 0.99) == float("inf")


def test_a_ratio_is_the_median_of_neighbors() -> None:
    assert ratio([1.0, 2.0, 9.0], [2.0, 2.0, 3.0]) == 1.0  # 0.5, 1, 3


def test_a_renewed_source_has_other_bytes_and_their_digest(tmp_path: Path) -> None:
    source = Source(tmp_path / "source", 1000)
    digests = set()
    for _ in range(2):
        source.renew()
        digests.add(source.digest)
    assert len(digests) == 2
    assert source.path.stat().st_size == 1000


def test_the_speed_of_a_core_is_sampled_without_moving_whoever_samples() -> None:
    before = os.sched_getaffinity(0)
    with Speed(max(before)) as speed:
        assert os.sched_getaffinity(0) == before
    assert len(speed.samples) >= 2
    assert all(seconds > 0 for seconds in speed.samples)


class Echo(http.server.BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        self.server.body = self.rfile.read(int(self.headers["Content-Length"]))  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(404 if self.path == "/nothing" else 200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"bytes")

    def log_message(self, *of: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    with http.server.HTTPServer(("127.0.0.1", 0), Echo) as echo:
        thread = threading.Thread(target=echo.serve_forever)
        thread.start()
        yield echo
        echo.shutdown()
        thread.join()


def test_a_part_of_a_file_is_sent_and_an_answer_counted(server: http.server.HTTPServer, tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"0123456789")
    caller = Caller(f"http://127.0.0.1:{server.server_port}")
    caller.put("/bytes", path, 3, 4)
    assert server.body == b"3456"  # type: ignore[attr-defined]
    assert caller.get("/bytes") == 5
    with pytest.raises(SystemExit, match="404"):
        caller.get("/nothing")


def test_the_control_plane_takes_all_that_it_started_with_it_when_it_is_told_to_end(tmp_path: Path) -> None:
    sizes = ("--agents", "10", "--workers", "10", "--federations", "1", "--polls", "2", "--engines", "sqlite")
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "benchmarks.control_plane", *sizes, "--folder", str(tmp_path / "here")]
        running = subprocess.Popen(command, stdout=log, stderr=log)
    children: list[psutil.Process] = []
    try:
        offers = tmp_path / "here" / "sqlite-full" / "offers.log"
        deadline = time.monotonic() + 90
        while not offers.exists():
            assert running.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        children = psutil.Process(running.pid).children(recursive=True)
        assert len(children) >= 5  # the supervisor, web, background, beat, the agents
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 128 + signal.SIGTERM
        assert psutil.wait_procs(children, 5)[1] == []  # (gone, alive)
    finally:
        running.kill()
        running.wait()
        for process in children:
            with suppress(psutil.NoSuchProcess):
                process.kill()
