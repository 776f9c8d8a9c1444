"""Work folders of steps. Those that a killed process left are deleted after a day."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ABANDONED_SECONDS = 24 * 3600.0


@contextmanager
def own_folder(parent: Path) -> Iterator[Path]:
    """A folder in `parent` that is deleted after the block."""
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)


def _sweep(parent: Path) -> None:
    oldest = time.time() - ABANDONED_SECONDS
    for folder in parent.iterdir():
        with suppress(FileNotFoundError):
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)
