"""The suite that every store must pass: a folder, and a store behind obstore's interface alone (memory)."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from coordinator.artifacts.store import chunks, objects
from coordinator.db.sessions import utcnow
from coordinator.settings import get_settings
from federated.payloads.header import HeaderError
from tests.support.service import forget_settings

PARTS = [os.urandom(5000) for _ in range(3)]
CONTENT = b"".join(PARTS)
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(params=["folder", "memory"], autouse=True)
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FEDLOOM_DATA_FOLDER", str(tmp_path / "a folder #1"))
    if request.param == "memory":
        monkeypatch.setenv("FEDLOOM_STORE_URL", "memory:///")
    forget_settings()
    return str(request.param)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    return path


def put_chunks(upload_id: str, parts: list[bytes]) -> None:
    async def body(part: bytes) -> AsyncIterator[bytes]:
        yield part[:100]
        yield part[100:]

    offset = 0
    for index, part in enumerate(parts):
        asyncio.run(chunks.put(upload_id, index, offset, body(part), len(part)))
        offset += len(part)


def read(digest: str, start: int, end: int) -> bytes:
    async def joined() -> bytes:
        return b"".join([bytes(part) async for part in objects.read(digest, start, end)])

    return asyncio.run(joined())


def test_a_file_lies_under_its_digest(file: Path) -> None:
    assert objects.size_of(DIGEST) is None
    assert objects.put_file(file) == objects.StoredObject(DIGEST, len(CONTENT))
    assert objects.put_file(file) == objects.StoredObject(DIGEST, len(CONTENT))
    assert objects.size_of(DIGEST) == len(CONTENT)
    assert read(DIGEST, 4000, 11_000) == CONTENT[4000:11_000]


def test_a_file_on_this_machine_can_be_had(file: Path) -> None:
    objects.put_file(file)
    path = objects.local_file(DIGEST)
    assert path.read_bytes() == CONTENT
    assert objects.local_file(DIGEST) == path


def test_what_is_not_there_is_not_found() -> None:
    with pytest.raises(FileNotFoundError):
        objects.local_file(DIGEST)
    with pytest.raises(FileNotFoundError):
        read(DIGEST, 0, 1)
    with pytest.raises(FileNotFoundError):
        objects.read_header(DIGEST)
    objects.drop(DIGEST)


def test_chunks_are_put_together_and_dropped() -> None:
    put_chunks("upl_1", PARTS)
    assert tuple(sorted(chunks.sizes("upl_1"))) == (0, 1, 2)
    calls: list[int] = []
    chunks.assemble("upl_1", 3, DIGEST, lambda: calls.append(1))
    assert read(DIGEST, 0, len(CONTENT)) == CONTENT
    assert set(calls) == {1}
    chunks.drop("upl_1")
    assert tuple(sorted(chunks.sizes("upl_1"))) == ()


def test_a_single_chunk_is_adopted() -> None:
    put_chunks("upl_1", [CONTENT])
    chunks.assemble("upl_1", 1, DIGEST, lambda: None)
    chunks.drop("upl_1")
    assert read(DIGEST, 0, len(CONTENT)) == CONTENT


def test_other_bytes_than_announced_are_not_stored() -> None:
    put_chunks("upl_1", [CONTENT[1:]])
    with pytest.raises(chunks.WrongBytes, match=DIGEST):
        chunks.assemble("upl_1", 1, DIGEST, lambda: None)
    with pytest.raises(chunks.WrongBytes, match=DIGEST):
        chunks.assemble("upl_1", 1, DIGEST, lambda: None)
    assert objects.size_of(DIGEST) is None
    objects.sweep(utcnow() + timedelta(days=1))
    assert list(objects.old_digests(utcnow() + timedelta(days=1))) == []


def test_a_missing_chunk_stops_the_assembly() -> None:
    put_chunks("upl_1", PARTS[:2])
    with pytest.raises(FileNotFoundError):
        chunks.assemble("upl_1", 3, DIGEST, lambda: None)
    assert objects.size_of(DIGEST) is None


@pytest.mark.parametrize("size_bytes", [4999, 5001])
def test_a_chunk_of_another_size_is_not_stored(size_bytes: int) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield PARTS[0]

    with pytest.raises(chunks.WrongBytes, match=f"must have {size_bytes} bytes"):
        asyncio.run(chunks.put("upl_1", 0, 0, body(), size_bytes))
    assert tuple(sorted(chunks.sizes("upl_1"))) == ()


def test_old_objects_are_listed_and_dropped(file: Path) -> None:
    objects.put_file(file)
    assert list(objects.old_digests(utcnow() - timedelta(hours=1))) == []
    assert list(objects.old_digests(utcnow() + timedelta(hours=1))) == [DIGEST]
    objects.drop(DIGEST)
    assert objects.size_of(DIGEST) is None


def test_what_a_dead_process_left_is_swept(kind: str, file: Path) -> None:
    objects.put_file(file)
    left = get_settings().data_folder / "artifacts" / "sha256" / "abc#7"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"half")
    objects.sweep(utcnow() - timedelta(hours=1))
    assert left.exists()
    objects.sweep(utcnow() + timedelta(hours=1))
    assert left.exists() == (kind == "memory")
    assert objects.size_of(DIGEST) == len(CONTENT)


def test_a_header_that_is_none_is_refused(file: Path) -> None:
    objects.put_file(file)
    with pytest.raises(HeaderError):
        objects.read_header(DIGEST)


def test_the_store_answers() -> None:
    objects.check()
