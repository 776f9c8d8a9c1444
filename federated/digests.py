"""SHA-256 of files, in 64 hexadecimal digits or as a digest with the prefix `sha256:`."""

import hashlib
import zipfile
from pathlib import Path

_PIECE_BYTES = 1024 * 1024


def file_sha256(path: Path | zipfile.Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            sha256.update(piece)
    return sha256.hexdigest()


def file_digest(path: Path | zipfile.Path) -> str:
    """ "sha256:" + hex SHA-256 of a file's bytes."""
    return "sha256:" + file_sha256(path)
