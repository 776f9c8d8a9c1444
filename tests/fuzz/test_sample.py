"""A minute of `python -m tests.fuzz`: nothing is found, and each part has done its work."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.once, pytest.mark.timeout(900)]

FEWEST_REQUESTS = 100
FEWEST_LIVES = 2
FEWEST_JOBS = 10
"""A fifth and less of what a machine does that four such runs keep busy."""


def test_a_minute_finds_nothing() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--minutes", "1", "--seed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=840)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    summary = json.loads(done.stdout.splitlines()[-1])["summary"]
    requests = {who: sum(counts.values()) for who, counts in summary["requests"].items()}
    assert summary["findings"] == 0
    assert sum(requests[who] for who in requests if who not in ("agent", "hostile worker")) > FEWEST_REQUESTS
    assert len(requests) > 12, "every role asks"
    assert sum(summary["lives"].values()) >= FEWEST_LIVES
    jobs = summary["jobs"]
    assert sum(jobs.values()) - jobs["good"] >= FEWEST_JOBS
    assert jobs["good"] > 0
    assert len(summary["growth_mib"]) == 6
