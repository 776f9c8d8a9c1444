"""Artifacts for the tests of this folder."""

import hashlib
from pathlib import Path
from typing import Any

import httpx

from coordinator.artifacts import service as artifacts
from coordinator.artifacts.store import objects
from coordinator.db.sessions import reading, writing

CONTENT = bytes(range(256)) * 40
DAY_SECONDS = 86_400


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


DIGEST = digest_of(CONTENT)


def announce(client: httpx.Client, content: bytes = CONTENT, **fields: Any) -> httpx.Response:
    body = {"size_bytes": len(content), "digest": digest_of(content), **fields}
    return client.post("/v1/artifacts/uploads", json=body)


def put_file(folder: Path, content: bytes = CONTENT) -> objects.StoredObject:
    path = folder / "file"
    path.write_bytes(content)
    return artifacts.put_file(path)


def recorded(folder: Path, content: bytes = CONTENT, holder: str = "rnd_1") -> objects.StoredObject:
    stored = put_file(folder, content)
    with writing() as session:
        artifacts.record(session, stored, holder, "state")
    return stored


def count(model: type) -> int:
    with reading() as session:
        return session.query(model).count()
