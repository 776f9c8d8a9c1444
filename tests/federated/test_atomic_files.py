"""Atomic files: whole or not at all, and never with the content of an interrupted write."""

from pathlib import Path

import pytest

from federated.atomic_files import UNFINISHED_SUFFIX, create_file, write_aside, write_file


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestWriteFile:
    def test_the_content_replaces_the_old_one_and_the_rest_of_a_crash(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"old")
        (tmp_path / f"file{UNFINISHED_SUFFIX}").write_bytes(b"from a crash")
        write_file(tmp_path / "file", b"new")
        assert contents(tmp_path) == {"file": b"new"}
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


class TestCreateFile:
    def test_a_file_that_exists_stays(self, tmp_path: Path) -> None:
        create_file(tmp_path / "key.pem", b"first")
        with pytest.raises(FileExistsError):
            create_file(tmp_path / "key.pem", b"second")
        assert contents(tmp_path) == {"key.pem": b"first"}


class TestWriteAside:
    def test_the_file_appears_at_the_end(self, tmp_path: Path) -> None:
        aside, path = tmp_path / "aside", tmp_path / "file"
        with write_aside(aside, path, lambda: aside.open("xb")) as file:
            file.write(b"content")
            assert not path.exists()
        assert contents(tmp_path) == {"file": b"content"}

    def test_an_error_leaves_the_old_file_alone(self, tmp_path: Path) -> None:
        aside, path = tmp_path / "aside", tmp_path / "file"
        path.write_bytes(b"old")
        with pytest.raises(ZeroDivisionError), write_aside(aside, path, lambda: aside.open("xb")):
            raise ZeroDivisionError
        assert contents(tmp_path) == {"file": b"old"}

    def test_the_file_of_another_writer_is_not_deleted(self, tmp_path: Path) -> None:
        aside = tmp_path / "aside"
        aside.write_bytes(b"another's")
        with pytest.raises(FileExistsError), write_aside(aside, tmp_path / "file", lambda: aside.open("xb")):
            pass
        assert contents(tmp_path) == {"aside": b"another's"}
