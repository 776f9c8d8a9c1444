"""Outbox: jobs that are finished and not yet submitted, one folder for each, visible only when complete on disk.

A job writes into `<folder>/.work/<job>/`, and `keep` turns that into `<folder>/<job>/` with one rename. After a crash
these jobs are submitted and not done again.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from federated.atomic_files import move, sync, write_file
from federated.protocol import JobKind, Lease, RoundKind, SubmitRequest, UpdateSubmission
from federated.signed_statement import Statement
from worker_agent.storage.file_names import file_name

UPDATE_FILE = "update.safetensors"
MEMORY_FILE = "memory.safetensors"
LONGEST_KEPT_SECONDS = 7 * 24 * 3600.0
_JOB_FILE = "job.json"
_WORK = ".work"

_log = structlog.get_logger(__name__)


class FinishedJob(BaseModel):
    """A job's work and its result, which depends on the seed and the instruction."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    job_id: str
    kind: JobKind
    federation_id: str
    client_id: str
    round_number: int | None
    round_kind: RoundKind | None
    algorithm: str
    algorithm_revision: int
    seed: int
    instruction_digest: str | None
    submission: SubmitRequest

    def statement(self, update: UpdateSubmission) -> Statement:
        """The statement that this worker signs about the job's update."""
        return Statement(
            federation_id=self.federation_id,
            job_id=self.job_id,
            round_kind=str(self.round_kind),
            round_number=self.round_number or 0,
            algorithm=self.algorithm,
            algorithm_revision=self.algorithm_revision,
            digest=update.digest,
            weight=update.weight,
            examples=update.examples,
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished job on disk."""

    job: FinishedJob
    folder: Path

    @property
    def update(self) -> Path:
        """File with the update's bytes, present if `job.submission.update` is."""
        return self.folder / UPDATE_FILE


class Outbox:
    """All finished jobs of this worker. One process at a time may use the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def open(self) -> None:
        """Delete jobs that a crash left unfinished, and those that nobody requested for a week."""
        shutil.rmtree(self._folder / _WORK, ignore_errors=True)
        for entry in self.entries():
            if time.time() - (entry.folder / _JOB_FILE).stat().st_mtime > LONGEST_KEPT_SECONDS:
                self.remove(entry)

    def work_folder(self, job_id: str) -> Path:
        """An empty folder for a job to write into."""
        folder = self._folder / _WORK / file_name(job_id)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def discard(self, job_id: str) -> None:
        """Delete the files of an unfinished job."""
        shutil.rmtree(self._folder / _WORK / file_name(job_id), ignore_errors=True)

    def keep(self, lease: Lease, submission: SubmitRequest) -> Entry:
        """Turn the job's work folder into a finished job, which is on disk when this returns."""
        work, target = self._folder / _WORK / file_name(lease.job_id), self._folder / file_name(lease.job_id)
        job = _finished_job(lease, submission)
        for name in (UPDATE_FILE, MEMORY_FILE):
            if (work / name).exists():
                sync(work / name)
        write_file(work / _JOB_FILE, job.model_dump_json().encode())
        shutil.rmtree(target, ignore_errors=True)
        move(work, target)
        return Entry(job, target)

    def entries(self) -> Iterator[Entry]:
        """All finished jobs, oldest first. Unreadable ones are deleted, because their jobs will be offered again."""
        folders = (path for path in self._folder.iterdir() if path.is_dir() and path.name != _WORK)
        for folder in sorted(folders, key=lambda path: (path.stat().st_mtime_ns, path.name)):
            entry = self._read(folder)
            if entry is not None:
                yield entry

    def find(self, lease: Lease) -> Entry | None:
        """The finished job for this lease: same job, same seed, same instruction."""
        folder = self._folder / file_name(lease.job_id)
        entry = self._read(folder) if folder.is_dir() else None
        if entry is None:
            return None
        if (entry.job.seed, entry.job.instruction_digest) == (lease.seed, _instruction_digest(lease)):
            return entry
        self.remove(entry)
        return None

    def remove(self, entry: Entry) -> None:
        """Delete a job that was submitted or is no longer needed."""
        trash = self._folder / _WORK / f"{entry.folder.name}-gone"
        trash.parent.mkdir(exist_ok=True)
        shutil.rmtree(trash, ignore_errors=True)
        entry.folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def _read(self, folder: Path) -> Entry | None:
        try:
            return Entry(FinishedJob.model_validate_json((folder / _JOB_FILE).read_bytes()), folder)
        except (OSError, ValidationError) as error:
            _log.warning("outbox_entry_damaged", job=folder.name, reason=str(error))
            shutil.rmtree(folder, ignore_errors=True)
            return None


def _instruction_digest(lease: Lease) -> str | None:
    return lease.instruction.digest if lease.instruction is not None else None


def _finished_job(lease: Lease, submission: SubmitRequest) -> FinishedJob:
    return FinishedJob(
        job_id=lease.job_id,
        kind=lease.kind,
        federation_id=lease.federation_id,
        client_id=lease.client_id,
        round_number=lease.round_number,
        round_kind=lease.round_kind,
        algorithm=lease.work.algorithm,
        algorithm_revision=lease.work.algorithm_revision,
        seed=lease.seed,
        instruction_digest=_instruction_digest(lease),
        submission=submission,
    )
