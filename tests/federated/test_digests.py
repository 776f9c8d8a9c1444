"""Digests of files, in folders and in zips, and of a model's weights."""

import hashlib
import zipfile
from pathlib import Path

from federated.digests import file_digest, file_sha256, weights_sha256

CONTENT = bytes(range(256)) * 5000


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_has_one_digest_in_a_folder_and_in_a_zip(tmp_path: Path) -> None:
    (file := tmp_path / "file").write_bytes(CONTENT)
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.write(file, "file")
    assert file_sha256(file) == sha256(CONTENT)
    assert file_digest(file) == file_digest(zipfile.Path(tmp_path / "zip") / "file") == f"sha256:{sha256(CONTENT)}"


def test_weights_in_one_file_have_the_digest_of_the_file(tmp_path: Path) -> None:
    (file := tmp_path / "model.safetensors").write_bytes(CONTENT)
    assert weights_sha256([file]) == sha256(CONTENT)


def test_weights_in_several_files_have_the_digest_of_a_line_per_file(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("b", "a")]
    for file in files:
        file.write_text(file.name)
    lines = f"a {sha256(b'a')}\nb {sha256(b'b')}\n"
    assert weights_sha256(files) == sha256(lines.encode())
    assert weights_sha256(files, lambda path: path.name) == sha256(b"a a\nb b\n")
