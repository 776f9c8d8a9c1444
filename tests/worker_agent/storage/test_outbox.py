"""The outbox: finished jobs survive a crash, and unfinished ones do not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from federated.protocol import ArtifactReference, SubmitRequest
from tests.worker_agent.leases import make_lease
from worker_agent.storage.outbox import LONGEST_KEPT_SECONDS, Entry, Outbox

DIGEST = "sha256:" + "1" * 64
OTHER = "sha256:" + "2" * 64
SUBMISSION = SubmitRequest.model_validate({"update": {"digest": DIGEST, "weight": 1.0, "examples": 3}})
INSTRUCTION = ArtifactReference(digest=DIGEST, size_bytes=8)

CRASH = """
import os, signal, sys
from pathlib import Path
from typing import Any
from tests.worker_agent.leases import make_lease
from tests.worker_agent.storage.test_outbox import SUBMISSION
from worker_agent.storage.outbox import Outbox
outbox = Outbox(Path(sys.argv[1]))
(outbox.work_folder("job_done") / "update.safetensors").write_bytes(b"done")
outbox.keep(make_lease(job_id="job_done"), SUBMISSION)
(outbox.work_folder("job_half") / "update.safetensors").write_bytes(b"half")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox")


def finish(outbox: Outbox, job_id: str = "job_1", **fields: Any) -> Entry:
    (outbox.work_folder(job_id) / "update.safetensors").write_bytes(b"update of " + job_id.encode())
    return outbox.keep(make_lease(job_id=job_id, **fields), SUBMISSION)


def test_what_was_finished_before_a_sigkill_is_there_and_what_was_half_done_is_not(tmp_path: Path) -> None:
    crashed = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path)], check=False, timeout=60)
    assert crashed.returncode == -signal.SIGKILL
    outbox = Outbox(tmp_path)
    outbox.open()
    (entry,) = outbox.entries()
    assert (entry.job.job_id, entry.job.submission, entry.update.read_bytes()) == ("job_done", SUBMISSION, b"done")
    assert not list(tmp_path.rglob("job_half"))


def test_entries_come_oldest_first(outbox: Outbox) -> None:
    for age, job_id in enumerate(("job_c", "job_b", "job_a")):
        folder = finish(outbox, job_id).folder
        os.utime(folder, (1000 + age, 1000 + age))
    assert [entry.job.job_id for entry in outbox.entries()] == ["job_c", "job_b", "job_a"]


def test_the_same_job_with_the_same_seed_and_instruction_is_found(outbox: Outbox) -> None:
    finish(outbox, instruction=INSTRUCTION)
    found = outbox.find(make_lease(instruction=INSTRUCTION, attempt=2))
    assert found is not None
    assert found.update.read_bytes() == b"update of job_1"


@pytest.mark.parametrize(
    "changed",
    [{"seed": 12}, {"instruction": None}, {"instruction": ArtifactReference(digest=OTHER, size_bytes=8)}],
)
def test_another_seed_or_instruction_is_other_work(outbox: Outbox, changed: dict[str, Any]) -> None:
    finish(outbox, instruction=INSTRUCTION)
    assert outbox.find(make_lease(**({"instruction": INSTRUCTION} | changed))) is None
    assert list(outbox.entries()) == []


def test_a_job_that_is_not_there_is_not_found(outbox: Outbox) -> None:
    finish(outbox, "job_2")
    assert outbox.find(make_lease()) is None


def test_a_removed_entry_is_gone(outbox: Outbox) -> None:
    outbox.remove(finish(outbox))
    assert list(outbox.entries()) == []


def test_an_entry_that_cannot_be_read_is_thrown_away(outbox: Outbox) -> None:
    entry = finish(outbox)
    (entry.folder / "job.json").write_text("{")
    assert list(outbox.entries()) == []
    assert not entry.folder.exists()


def test_what_nobody_asked_for_in_a_week_is_thrown_away(outbox: Outbox) -> None:
    old, young = finish(outbox, "job_old"), finish(outbox, "job_young")
    long_ago = time.time() - LONGEST_KEPT_SECONDS - 60
    os.utime(old.folder / "job.json", (long_ago, long_ago))
    outbox.open()
    assert [entry.job.job_id for entry in outbox.entries()] == [young.job.job_id]


def test_a_job_starts_in_an_empty_folder(outbox: Outbox) -> None:
    (outbox.work_folder("job_1") / "rest").write_bytes(b"of an attempt that broke off")
    assert list(outbox.work_folder("job_1").iterdir()) == []
