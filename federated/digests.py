"""SHA-256 of files: in 64 hexadecimal digits, as a digest with the prefix `sha256:`, and of a model's weights.

The weights in one file have the SHA-256 of that file. For several files it is the SHA-256 of one line per file,
`<file name> <sha256 in hex>` and a line feed, sorted by name.
"""

import hashlib
import zipfile
from collections.abc import Callable, Iterable
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


def weights_sha256(files: Iterable[Path], sha256_of: Callable[[Path], str] = file_sha256) -> str:
    """Hex SHA-256 of a model's weights, as in the module docstring. `sha256_of` may take it from a cache."""
    digests = sorted((file.name, sha256_of(file)) for file in files)
    if len(digests) == 1:
        return digests[0][1]
    lines = "".join(f"{name} {digest}\n" for name, digest in digests)
    return hashlib.sha256(lines.encode()).hexdigest()
