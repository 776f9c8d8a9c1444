"""Artifacts up and down: in pieces, going on where a broken transfer stopped, each held against its SHA-256."""

import hashlib
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from federated.protocol import ArtifactReference, UploadAnswer, UploadRequest
from worker_agent.connection import Connection
from worker_agent.durable import UNFINISHED_SUFFIX, digest_of, file_name, move
from worker_agent.errors import BytesDamaged, CoordinatorAway, CoordinatorRefused, NotUnderstood

UPLOAD_ROUNDS = 3
ASSEMBLY_PAUSES_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
ASSEMBLY_LIMIT_SECONDS = 3600.0
_PIECE_BYTES = 1024 * 1024


def upload(connection: Connection, source: Path, digest: str) -> ArtifactReference:
    """Send the file at `source`, or what is missing of it at the coordinator, which finds an upload by its digest.

    Raises BytesDamaged if the coordinator assembled other bytes, NotUnderstood if it never has enough of them.
    """
    request = UploadRequest(size_bytes=source.stat().st_size, digest=digest)
    body = request.model_dump(mode="json")
    answer = connection.ask("POST", "/v1/artifacts/uploads", UploadAnswer, repeat=True, json=body)
    for _ in range(UPLOAD_ROUNDS):
        answer = _settled(connection, _completed(connection, source, answer))
        if answer.state == "complete" and answer.artifact is not None:
            return answer.artifact
        if answer.state == "failed":
            raise BytesDamaged(f"upload of {source.name} failed: {(answer.problem or {}).get('detail', 'no reason')}")
    raise NotUnderstood(f"upload {answer.upload_id} is still {answer.state} after all its chunks were sent")


def _completed(connection: Connection, source: Path, upload: UploadAnswer) -> UploadAnswer:
    if upload.state != "open":
        return upload
    path = _upload_path(upload.upload_id)
    with source.open("rb") as file:
        for index in sorted(set(range(upload.chunks)) - set(upload.chunks_present)):
            file.seek(index * upload.chunk_bytes)
            content = file.read(upload.chunk_bytes)
            if index in upload.chunk_urls:
                connection.put_to_store(upload.chunk_urls[index], content)
            else:
                connection.send("PUT", f"{path}/chunks/{index}", repeat=True, content=content)
    try:
        return connection.ask("POST", f"{path}/complete", UploadAnswer, repeat=True)
    except CoordinatorRefused as error:
        if error.code == "digest_mismatch":
            raise BytesDamaged(f"upload of {source.name}: {error.detail}") from error
        if error.status != 409:
            raise
        return connection.ask("GET", path, UploadAnswer, repeat=True)


def _settled(connection: Connection, upload: UploadAnswer) -> UploadAnswer:
    """Wait until the coordinator has put the chunks together."""
    deadline = time.monotonic() + ASSEMBLY_LIMIT_SECONDS
    for pause_seconds in _pauses():
        if upload.state != "assembling":
            return upload
        if connection.stopping.wait(pause_seconds) or time.monotonic() > deadline:
            raise CoordinatorAway(f"upload {upload.upload_id} is still being assembled")
        upload = connection.ask("GET", _upload_path(upload.upload_id), UploadAnswer, repeat=True)
    return upload


def _pauses() -> Iterator[float]:
    yield from ASSEMBLY_PAUSES_SECONDS
    while True:
        yield ASSEMBLY_PAUSES_SECONDS[-1]


def _upload_path(upload_id: str) -> str:
    return f"/v1/artifacts/uploads/{file_name(upload_id)}"


@dataclass(frozen=True, slots=True)
class Download:
    """Where an artifact lies now, and how many bytes came over the network for it in this call."""

    path: Path
    transferred_bytes: int


class ArtifactCache:
    """Downloaded artifacts by digest under `folder`. One download of a digest at a time, in this process."""

    def __init__(self, connection: Connection, folder: Path) -> None:
        self._connection = connection
        self._folder = folder
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        folder.mkdir(parents=True, exist_ok=True)

    def fetch(self, reference: ArtifactReference) -> Download:
        """The artifact as a local file. Raises BytesDamaged, NotThere, CoordinatorAway."""
        path = self._folder / reference.digest.removeprefix("sha256:")
        with self._locks[reference.digest]:
            # Looked at again: bytes that were damaged on this disk since would be trained on without a word.
            if path.exists() and digest_of(path) == reference.digest:
                path.touch()
                return Download(path, 0)
            return Download(path, self._download(reference, path))

    def trim(self, keep_bytes: int, keep_files: int) -> None:
        """Delete the files that were used longest ago, until `keep_bytes` are left or `keep_files` files."""
        files = sorted((file for file in self._folder.iterdir()), key=lambda file: -file.stat().st_mtime)
        total_bytes = 0
        for position, file in enumerate(files):
            total_bytes += file.stat().st_size
            if position >= keep_files and total_bytes > keep_bytes:
                file.unlink(missing_ok=True)

    def _download(self, reference: ArtifactReference, path: Path) -> int:
        """Attempts that bring nothing are counted by the connection; one that got further starts the count anew."""
        partial = _PartialFile(self._connection, reference, path.with_name(path.name + UNFINISHED_SUFFIX))
        while True:
            before_bytes = partial.received_bytes
            try:
                self._connection.retrying(partial.advance, repeat=True)
            except CoordinatorAway:
                if partial.received_bytes == before_bytes or self._connection.stopping.is_set():
                    raise
            else:
                move(partial.path, path)
                return partial.received_bytes


class _PartialFile:
    """A download that is not whole yet. `received_bytes` counts what came over the network."""

    def __init__(self, connection: Connection, reference: ArtifactReference, path: Path) -> None:
        self.path = path
        self.received_bytes = 0
        self._connection = connection
        self._reference = reference

    def advance(self) -> None:
        """One attempt to get what is missing; returns with the whole, checked file on disk."""
        with self.path.open("a+b") as file:
            file.seek(0)
            digest = hashlib.sha256()
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
            if file.tell() < self._reference.size_bytes:
                digest = self._receive(file, digest)
            file.flush()
            os.fsync(file.fileno())
        if "sha256:" + digest.hexdigest() != self._reference.digest:
            self.path.unlink()
            raise BytesDamaged(f"artifact {self._reference.digest} came with other bytes")

    def _receive(self, file: BinaryIO, digest: "hashlib._Hash") -> "hashlib._Hash":
        headers = {"Accept-Encoding": "identity"}
        if file.tell():
            headers["Range"] = f"bytes={file.tell()}-"
        with self._connection.stream(f"/v1/artifacts/{self._reference.digest}", headers) as response:
            if response.status_code != 206:
                file.truncate(0)
                digest = hashlib.sha256()
            # As they come: pieces of a fixed size would be lost unfinished when the connection breaks.
            for piece in response.iter_bytes():
                self.received_bytes += len(piece)
                digest.update(piece)
                file.write(piece)
        return digest
