"""Race of many leases at two web processes for one pool of offers: no job is leased twice."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from coordinator.addresses import free_port
from coordinator.db.sessions import writing
from coordinator.models import Worker
from tests.coordinator.jobs.job_rig import BOOT, Site
from tests.support.web_process import answers

JOBS, CALLERS = 24, 8
START_SECONDS = 120.0


@pytest.fixture
def second_web(site: Site, tmp_path: Path) -> Iterator[str]:
    """URL of a web process beside the one in this process, over the same database."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    with (tmp_path / "web.log").open("wb") as log:
        command = [sys.executable, "-m", "coordinator", "serve", "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(url):
            assert process.poll() is None, (tmp_path / "web.log").read_text("utf-8")
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def test_no_job_is_given_out_twice(site: Site, second_web: str) -> None:
    with writing() as session:
        session.get_one(Worker, site.worker.id).capabilities = {"algorithms": {"fedavg": 1}, "slots": 2 * JOBS}
    offered = [site.rig.offer(client_id=site.rig.another_client(f"data {number}")) for number in range(JOBS)]
    ready = threading.Barrier(CALLERS)

    def lease_all(number: int) -> list[str]:
        url = (site.service.url, second_web)[number % 2]
        found: list[str] = []
        with httpx.Client(base_url=url, auth=site.worker.identity, timeout=60, trust_env=False) as http:
            ready.wait()
            while (
                answer := http.post("/v1/jobs/lease", json={"boot_id": BOOT, "wait_seconds": 0})
            ).status_code == 200:
                found.append(answer.json()["job_id"])
        assert answer.status_code == 204, answer.text
        return found

    with ThreadPoolExecutor(CALLERS) as pool:
        leased = [job_id for found in pool.map(lease_all, range(CALLERS)) for job_id in found]
    assert sorted(leased) == sorted(offered)
    assert site.rig.jobs() == [("leased", 1)] * JOBS
