"""A file system of a few megabytes that a test can fill up and free again."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_FILLER = ".filler"
_PIECE_BYTES = 64 * 1024


class SmallDisk:
    """`mounted` is False where this process may not mount: the folder is an ordinary one, and cannot be filled."""

    def __init__(self, folder: Path, mounted: bool) -> None:
        self.folder = folder
        self.mounted = mounted

    def fill(self) -> None:
        """Leaves no room at all. Skips the test where there is no disk of our own."""
        if not self.mounted:
            pytest.skip("a disk of our own needs root and the right to mount")
        with suppress(OSError), (self.folder / _FILLER).open("ab", buffering=0) as file:
            while file.write(bytes(_PIECE_BYTES)):
                pass

    def free(self) -> None:
        """Makes room again."""
        (self.folder / _FILLER).unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[SmallDisk]:
    """A tmpfs over the folder, which is made if there is none; taken away afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "fedloom-tests", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield SmallDisk(folder, mounted)
    finally:
        if mounted:
            unmount = ["umount", "--lazy", str(folder)]
            subprocess.run(unmount, capture_output=True, check=True)
