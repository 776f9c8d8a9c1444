"""Folders that steps work in, beside each other; what a killed process left goes after a day."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ABANDONED_SECONDS = 24 * 3600.0


@contextmanager
def own_folder(desk: Path) -> Iterator[Path]:
    """A folder in `desk` that goes with the block."""
    desk.mkdir(parents=True, exist_ok=True)
    _sweep(desk)
    with tempfile.TemporaryDirectory(dir=desk) as folder:
        yield Path(folder)


def _sweep(desk: Path) -> None:
    oldest = time.time() - ABANDONED_SECONDS
    for folder in desk.iterdir():
        with suppress(FileNotFoundError):
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)
