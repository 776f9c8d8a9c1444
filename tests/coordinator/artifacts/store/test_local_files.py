"""Files of a folder store: whole or not at all, in pieces of any size."""

import asyncio
import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from coordinator.artifacts.store import local_files
from coordinator.db.sessions import utcnow

CONTENT = os.urandom(3 * local_files.PIECE_BYTES + 7)
PART_BYTES = 65_536


def below(path: Path) -> list[Path]:
    return [found for found in path.rglob("*") if found.is_file()]


class TestDurable:
    def test_it_is_whole_however_often_the_disk_was_made_to_work_along(self, tmp_path: Path) -> None:
        path = tmp_path / "object"
        with local_files.write_durably(path, flush_bytes=1000) as writer:
            for start in range(0, len(CONTENT), PART_BYTES):
                writer.write(CONTENT[start : start + PART_BYTES])
                assert not path.exists()
        assert (path.read_bytes(), below(tmp_path)) == (CONTENT, [path])

    def test_an_error_leaves_what_was_there(self, tmp_path: Path) -> None:
        path = tmp_path / "object"
        path.write_bytes(b"earlier")
        with suppress(ValueError), local_files.write_durably(path) as writer:
            writer.write(CONTENT)
            raise ValueError
        assert (path.read_bytes(), below(tmp_path)) == (b"earlier", [path])


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, len(CONTENT)), (5, 6), (7, 2 * local_files.PIECE_BYTES + 9), (len(CONTENT) - 1, len(CONTENT))],
)
def test_a_range_is_read(start: int, end: int, tmp_path: Path) -> None:
    path = tmp_path / "object"
    path.write_bytes(CONTENT)

    async def joined() -> bytes:
        return b"".join([piece async for piece in local_files.pieces_between(path, start, end)])

    assert asyncio.run(joined()) == CONTENT[start:end]


def test_the_unfinished_of_long_ago_is_swept(tmp_path: Path) -> None:
    for name in ("object", "object#17", "new#18"):
        (tmp_path / name).write_bytes(b"x")
    os.utime(tmp_path / "object#17", (0, 0))
    os.utime(tmp_path / "object", (0, 0))
    local_files.sweep(tmp_path, utcnow() - timedelta(days=1))
    assert sorted(path.name for path in below(tmp_path)) == ["new#18", "object"]
