"""Downloads of artifacts: resumed after an interruption, and never more bytes than announced.

Bytes are written as they arrive and never decompressed. The SHA-256 is checked before they are used.
"""

import errno
import hashlib
import os
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx
import structlog

from federated.atomic_files import UNFINISHED_SUFFIX, flush, move
from federated.digests import file_digest
from federated.protocol import ArtifactReference
from worker_agent.coordinator_api.connection import FIRST_PAUSE_SECONDS, Connection
from worker_agent.errors import CoordinatorAway, CorruptBytes, NotUnderstood, OutOfTime, StoreAway

RESERVE_BYTES = 256 * 1024**2
DAMAGED_TIMES = 3
TRUSTED_TIMES = 3
FIRST_DISTRUST_SECONDS = 60.0
LONGEST_DISTRUST_SECONDS = 3600.0
_RESERVE_SHARE = 20
_MAX_BACKOFFS = 1024
_PIECE_BYTES = 1024 * 1024

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Download:
    """The local file of an artifact, and the bytes transferred for it in this call."""

    path: Path
    transferred_bytes: int


class ArtifactCache:
    """Downloaded artifacts by digest under `folder`. One download of a digest at a time, in this process."""

    def __init__(self, connection: Connection, folder: Path) -> None:
        self._connection = connection
        self._folder = folder
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._distrust = _Distrust()
        folder.mkdir(parents=True, exist_ok=True)

    def fetch(self, reference: ArtifactReference, until: float | None = None) -> Download:
        """The artifact as a local file. `until`: deadline (monotonic) or None.

        Raises CorruptBytes, NotThere, CoordinatorAway, NotUnderstood, OutOfTime, and OSError (ENOSPC) before any
            request if the disk has too little space.
        """
        path = self._folder / reference.digest.removeprefix("sha256:")
        with _locked_until(self._locks[reference.digest], until):
            # Checked again: otherwise bytes that were damaged on this disk since would be trained on silently.
            if path.exists() and file_digest(path) == reference.digest:
                path.touch()
                return Download(path, 0)
            self._distrust.check(reference.digest)
            with self._distrust.count_failure(reference.digest):
                return Download(path, self._download(reference, path, until))

    def trim(self, keep_bytes: int, keep_files: int) -> None:
        """Delete the least recently used files until `keep_bytes` or `keep_files` files are left."""
        files = sorted((file for file in self._folder.iterdir()), key=lambda file: -file.stat().st_mtime)
        total_bytes = 0
        for position, file in enumerate(files):
            total_bytes += file.stat().st_size
            if position >= keep_files and total_bytes > keep_bytes:
                file.unlink(missing_ok=True)

    def _download(self, reference: ArtifactReference, path: Path, until: float | None) -> int:
        """Download in attempts. The connection counts attempts without progress; any progress restarts its count."""
        partial = _PartialFile(self._connection, reference, path.with_name(path.name + UNFINISHED_SUFFIX), until)
        failures = 0
        while True:
            before_bytes = partial.furthest_bytes
            try:
                self._connection.retrying(partial.advance, repeat=True, until=until)
            except StoreAway as error:
                if not self._connection.origins.avoid_stores():
                    raise
                _log.warning("store_avoided", reason=str(error))
            except CoordinatorAway:
                if partial.furthest_bytes == before_bytes or self._connection.stopping.is_set():
                    raise
            except CorruptBytes:
                failures += 1
                self._connection.origins.avoid_stores()
                if failures == DAMAGED_TIMES or self._connection.stopping.wait(failures * FIRST_PAUSE_SECONDS):
                    raise
            else:
                move(partial.path, path)
                return partial.received_bytes


class _PartialFile:
    """An incomplete download.

    `received_bytes` counts the bytes from the network, `furthest_bytes` is the greatest length of the file so far.
    """

    def __init__(self, connection: Connection, reference: ArtifactReference, path: Path, until: float | None) -> None:
        self.path = path
        self.received_bytes = 0
        self.furthest_bytes = 0
        self._connection = connection
        self._reference = reference
        self._until = until

    def advance(self) -> None:
        """One attempt to download the missing part. When it returns, the file is complete, checked and on disk."""
        if self._until is not None and time.monotonic() >= self._until:
            raise OutOfTime(f"artifact {self._reference.digest} did not arrive in time")
        with self.path.open("a+b") as file:
            digest = self._resume(file)
            if file.tell() < self._reference.size_bytes:
                self._check_room(file.tell())
                digest = self._receive(file, digest)
            flush(file)
        if "sha256:" + digest.hexdigest() != self._reference.digest:
            self.path.unlink()
            raise CorruptBytes(f"artifact {self._reference.digest} arrived with different bytes")

    def _resume(self, file: BinaryIO) -> "hashlib._Hash":
        """The hash of the present bytes, with the file at its end. A file longer than announced is emptied."""
        if os.fstat(file.fileno()).st_size > self._reference.size_bytes:
            file.truncate(0)
        file.seek(0)
        digest = hashlib.sha256()
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
        self.furthest_bytes = max(self.furthest_bytes, file.tell())
        return digest

    def _check_room(self, present_bytes: int) -> None:
        missing_bytes = self._reference.size_bytes - present_bytes
        disk = shutil.disk_usage(self.path.parent)
        reserve_bytes = min(RESERVE_BYTES, disk.total // _RESERVE_SHARE)
        if disk.free < missing_bytes + reserve_bytes:
            detail = f"{missing_bytes} bytes are missing, {disk.free} are free, {reserve_bytes} stay free"
            raise OSError(errno.ENOSPC, f"no space for artifact {self._reference.digest}: {detail}")

    def _receive(self, file: BinaryIO, digest: "hashlib._Hash") -> "hashlib._Hash":
        headers = {"Range": f"bytes={file.tell()}-"} if file.tell() else {}
        path = f"/v1/artifacts/{self._reference.digest}"
        with self._connection.stream(path, headers, self._until) as response:
            try:
                self._check_start(response, file.tell())
            except CorruptBytes:
                file.truncate(0)
                raise
            if response.status_code == 200:
                file.truncate(0)
                digest = hashlib.sha256()
            # Pieces as they arrive: an incomplete piece of a fixed size would be lost when the connection breaks.
            for piece in response.iter_raw():
                self._keep(file, piece)
                digest.update(piece)
        if file.tell() < self._reference.size_bytes:
            raise CoordinatorAway(f"artifact {self._reference.digest} ended after {file.tell()} bytes")
        return digest

    def _keep(self, file: BinaryIO, piece: bytes) -> None:
        self.received_bytes += len(piece)
        if file.seek(0, os.SEEK_END) + len(piece) > self._reference.size_bytes:
            file.truncate(0)
            raise CorruptBytes(f"artifact {self._reference.digest} arrived with more bytes than announced")
        file.write(piece)
        self.furthest_bytes = max(self.furthest_bytes, file.tell())

    def _check_start(self, response: httpx.Response, present_bytes: int) -> None:
        """Raises CorruptBytes for bytes that were not requested, NotUnderstood for a status without any."""
        size_bytes = self._reference.size_bytes
        if response.status_code not in {200, 206}:
            raise NotUnderstood(
                f"artifact {self._reference.digest}: the status of the response is {response.status_code}"
            )
        start = 0 if response.status_code == 200 else present_bytes
        ranges = {f"bytes {present_bytes}-{size_bytes - 1}/{total}" for total in (size_bytes, "*")}
        if response.status_code == 206 and response.headers.get("Content-Range", "").strip() not in ranges:
            raise CorruptBytes(f"artifact {self._reference.digest} arrived with a part that was not requested")
        if response.headers.get("Content-Length", f"{size_bytes - start}") != f"{size_bytes - start}":
            raise CorruptBytes(f"artifact {self._reference.digest} has another number of bytes than announced")


class _Distrust:
    """Backoff for digests under which different bytes arrived repeatedly."""

    def __init__(self) -> None:
        self._failures: dict[str, tuple[int, float]] = {}

    def check(self, digest: str) -> None:
        """Raises CorruptBytes while it is too early for another download."""
        times, not_before = self._failures.get(digest, (0, 0.0))
        if time.monotonic() < not_before:
            raise CorruptBytes(
                f"artifact {digest} arrived with different bytes in {times} downloads; the next one has to wait"
            )

    @contextmanager
    def count_failure(self, digest: str) -> Iterator[None]:
        """Count a download that ended with different bytes. A success resets the count."""
        try:
            yield
        except CorruptBytes:
            times = self._failures.pop(digest, (0, 0.0))[0] + 1
            backoff_seconds = FIRST_DISTRUST_SECONDS * 2 ** min(times - TRUSTED_TIMES, 8)
            pause_seconds = min(backoff_seconds, LONGEST_DISTRUST_SECONDS) if times >= TRUSTED_TIMES else 0.0
            self._failures[digest] = (times, time.monotonic() + pause_seconds)
            while len(self._failures) > _MAX_BACKOFFS:
                del self._failures[next(iter(self._failures))]
            raise
        self._failures.pop(digest, None)


@contextmanager
def _locked_until(lock: threading.Lock, until: float | None) -> Iterator[None]:
    if not lock.acquire(timeout=-1 if until is None else max(0.0, until - time.monotonic())):
        raise OutOfTime("another download of the same artifact did not finish in time")
    try:
        yield
    finally:
        lock.release()
