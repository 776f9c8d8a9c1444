"""Single-file uploads: the object is whole, never changes, and is written once."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.artifacts.store import local_files, single_file_upload

CHUNK_BYTES = local_files.PIECE_BYTES + 7
CONTENT = os.urandom(3 * CHUNK_BYTES - 100)
PART_BYTES = 65_536
DIGEST = hashlib.sha256(CONTENT).hexdigest()


async def parts(index: int, ends: bool = True) -> AsyncIterator[bytes]:
    chunk = CONTENT[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
    for start in range(0, len(chunk), PART_BYTES):
        yield chunk[start : start + PART_BYTES]
        if not ends:
            raise ConnectionResetError("cut")


class Upload:
    """One file, its chunks' marks, and what it becomes."""

    def __init__(self, place: Path) -> None:
        self.whole, self.target, self._marks = (
            place / "uploads" / "1.whole",
            place / "sha256" / "x",
            place / "uploads" / "1",
        )

    def send(self, index: int, body: AsyncIterator[bytes] | None = None) -> None:
        at = (self.whole, index * CHUNK_BYTES, self._marks / str(index))
        asyncio.run(single_file_upload.receive(*at, body or parts(index)))

    def there(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in sorted(self._marks.glob("*"))}

    def become(self, digest: str = DIGEST) -> None:
        def check(found: str) -> None:
            assert found == digest

        single_file_upload.finish(self.whole, self.target, check, lambda: None)


@pytest.fixture
def upload(tmp_path: Path) -> Upload:
    return Upload(tmp_path)


def test_chunks_in_any_order_are_the_file_without_another_copy(upload: Upload) -> None:
    for index in (2, 0, 1):
        upload.send(index)
    assert upload.there() == {"0": CHUNK_BYTES, "1": CHUNK_BYTES, "2": CHUNK_BYTES - 100}
    inode = upload.whole.stat().st_ino
    os.utime(upload.whole, (0, 0))
    upload.become()
    assert (upload.target.read_bytes(), upload.whole.exists()) == (CONTENT, False)
    assert upload.target.stat().st_ino == inode
    assert upload.target.stat().st_mtime > 0, "the collector would take it for one of long ago"


def test_a_chunk_that_breaks_off_is_not_there(upload: Upload) -> None:
    upload.send(0)
    with pytest.raises(ConnectionResetError):
        upload.send(1, parts(1, ends=False))
    assert upload.there() == {"0": CHUNK_BYTES}


def test_one_that_is_there_stays_as_it_is_until_others_have_come_whole(upload: Upload) -> None:
    for index in range(3):
        upload.send(index, parts(0) if index == 1 else None)
    with pytest.raises(ConnectionResetError):
        upload.send(1, parts(1, ends=False))
    assert upload.whole.read_bytes()[CHUNK_BYTES : 2 * CHUNK_BYTES] == CONTENT[:CHUNK_BYTES]
    upload.send(1)
    assert upload.there() == {"0": CHUNK_BYTES, "1": CHUNK_BYTES, "2": CHUNK_BYTES - 100}
    upload.become()
    assert upload.target.read_bytes() == CONTENT


def test_other_bytes_stay_what_they_were(upload: Upload) -> None:
    upload.send(0)
    with pytest.raises(AssertionError):
        upload.become()
    assert (upload.whole.exists(), upload.target.exists()) == (True, False)


def test_nobody_writes_into_what_is_being_made_an_object(upload: Upload) -> None:
    for index in range(3):
        upload.send(index)

    def meddle(found: str) -> None:
        with pytest.raises(BlockingIOError):
            upload.send(0, parts(1))

    single_file_upload.finish(upload.whole, upload.target, meddle, lambda: None)
    assert upload.target.read_bytes() == CONTENT


def test_it_becomes_none_while_somebody_writes(upload: Upload) -> None:
    async def meddling() -> AsyncIterator[bytes]:
        yield CONTENT[:10]
        with pytest.raises(BlockingIOError):
            upload.become()

    upload.send(0, meddling())
    assert upload.there() == {"0": 10}


def test_a_chunk_that_comes_after_all_leaves_the_object_alone(upload: Upload) -> None:
    for index in range(3):
        upload.send(index)
    upload.become()
    upload.send(0)
    assert upload.target.read_bytes() == CONTENT
    assert upload.whole.read_bytes() == CONTENT[:CHUNK_BYTES], "a file of its own, which goes with the upload"
