"""Memories of clients between rounds: files by digest, in the order of their creation.

The path is `<folder>/<federation>/<client>/<serial>-<hex>.safetensors`. The lease names the memory to start from, the
newest that the coordinator accepted. It and all later ones are kept, so that a repeated job starts from the same
state. The lease and the instruction of the last finished job lie beside them.
"""

import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

import structlog

from federated.atomic_files import UNFINISHED_SUFFIX, move, sync
from federated.digests import file_digest
from federated.protocol import Lease, MemoryReference
from worker_agent.errors import ConfigurationError
from worker_agent.storage.file_names import file_name

_log = structlog.get_logger(__name__)


LEASE_FILE = "last-job.json"
INSTRUCTION_FILE = "last-instruction.payload"


@dataclass(frozen=True, slots=True)
class LastJob:
    """The last instruction to a client, and its newest memory."""

    lease: Lease
    instruction: Path
    memory: Path | None


class MemoryChain:
    """The memories of all clients of this worker."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def keep(self, federation_id: str, client_id: str, source: Path, digest: str) -> None:
        """Add the file at `source` as the client's newest memory. An existing one stays unchanged."""
        place = self._place(federation_id, client_id)
        place.mkdir(parents=True, exist_ok=True)
        with self._lock:
            files = _files(place)
            if any(_digest(file) == digest for file in files):
                return
            serial = _serial(files[-1]) + 1 if files else 1
            target = place / f"{serial:08d}-{digest.removeprefix('sha256:')}.safetensors"
            partial = target.with_suffix(UNFINISHED_SUFFIX)
            _link_or_copy(source, partial)
            sync(partial)
            move(partial, target)

    def keep_job(self, lease: Lease, instruction: Path) -> None:
        """Store lease and instruction beside the memories, from which the client's own adapter can be written."""
        place = self._place(lease.federation_id, lease.client_id)
        if not place.is_dir():
            return
        with self._lock:
            for name, write in (
                (INSTRUCTION_FILE, lambda target: _link_or_copy(instruction, target)),
                (LEASE_FILE, lambda target: target.write_text(lease.model_dump_json(), encoding="utf-8")),
            ):
                partial = (place / name).with_suffix(UNFINISHED_SUFFIX)
                write(partial)
                move(partial, place / name)

    def last_job(self, federation_id: str, client_id: str) -> LastJob:
        """The last job of `keep_job`, and the newest memory. Raises ConfigurationError if there is none."""
        place = self._place(federation_id, client_id)
        lease, instruction = place / LEASE_FILE, place / INSTRUCTION_FILE
        if not (lease.is_file() and instruction.is_file()):
            raise ConfigurationError(f"this worker has no memory of client {client_id} of federation {federation_id}")
        files = _files(place)
        last_lease = Lease.model_validate_json(lease.read_bytes())
        return LastJob(last_lease, instruction, files[-1] if files else None)

    def find(self, federation_id: str, client_id: str, reference: MemoryReference | None) -> Path | None:
        """The memory of a lease, or None to recompute it if it is missing or damaged (late joiner, lost disk).

        Deletes older memories, which no lease will name again.
        """
        if reference is None:
            return None
        with self._lock:
            files = _files(self._place(federation_id, client_id))
            memory_file = next((file for file in files if _digest(file) == reference.digest), None)
            if memory_file is None or file_digest(memory_file) != reference.digest:
                _log.warning(
                    "memory_missing", client=client_id, round=reference.round_number, digest=reference.digest
                )
                if memory_file is not None:
                    memory_file.unlink()
                return None
            for file in files[: files.index(memory_file)]:
                file.unlink()
            return memory_file

    def _place(self, federation_id: str, client_id: str) -> Path:
        return self._folder / file_name(federation_id) / file_name(client_id)


def _files(place: Path) -> list[Path]:
    return sorted(place.glob("*.safetensors"))


def _serial(file: Path) -> int:
    return int(file.name.partition("-")[0])


def _digest(file: Path) -> str:
    return "sha256:" + file.stem.partition("-")[2]


def _link_or_copy(source: Path, target: Path) -> None:
    """Create a hard link, which costs nothing, or a copy on file systems without them."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
