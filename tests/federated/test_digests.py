"""Digests of files, in folders and in zips."""

import hashlib
import zipfile
from pathlib import Path

from federated.digests import file_digest, file_sha256

CONTENT = bytes(range(256)) * 5000


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_has_one_digest_in_a_folder_and_in_a_zip(tmp_path: Path) -> None:
    (file := tmp_path / "file").write_bytes(CONTENT)
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.write(file, "file")
    assert file_sha256(file) == sha256(CONTENT)
    assert file_digest(file) == file_digest(zipfile.Path(tmp_path / "zip") / "file") == f"sha256:{sha256(CONTENT)}"
