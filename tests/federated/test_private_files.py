"""Private data folders: created with private permissions, and rejected if other users have access."""

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from federated.private_files import NotPrivate, check_private, keep_private, own_folder
from tests.support.foreign import make_foreign


@pytest.fixture
def usual_umask() -> Iterator[None]:
    """That of an ordinary login."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o7777


class TestMade:
    @pytest.mark.usefixtures("usual_umask")
    def test_what_is_made_from_now_on_is_the_users_alone(self, tmp_path: Path) -> None:
        keep_private()
        own_folder(tmp_path / "above" / "data")
        (tmp_path / "above" / "data" / "file").write_bytes(b"")
        made = [tmp_path / "above", tmp_path / "above" / "data", tmp_path / "above" / "data" / "file"]
        assert [mode_of(path) for path in made] == [0o700, 0o700, 0o600]

    @pytest.mark.usefixtures("usual_umask")
    def test_processes_that_it_starts_keep_to_it(self, tmp_path: Path) -> None:
        keep_private()
        subprocess.run(["/bin/sh", "-c", f"> {shlex.quote(str(tmp_path / 'file'))}"], check=True)
        assert mode_of(tmp_path / "file") == 0o600


class TestRefused:
    @pytest.mark.parametrize("mode", [bit | 0o700 for bit in (0o1, 0o2, 0o4, 0o10, 0o20, 0o40, 0o55, 0o77)])
    def test_a_folder_with_any_right_for_others(self, tmp_path: Path, mode: int) -> None:
        (folder := tmp_path / "a data folder").mkdir()
        folder.chmod(mode)
        with pytest.raises(NotPrivate) as refused:
            own_folder(folder)
        assert str(refused.value).endswith(f"run: chmod -R go-rwx '{folder}'")
        assert f"mode {mode:04o}" in str(refused.value)
        assert mode_of(folder) == mode

    @pytest.mark.parametrize("mode", [bit | 0o600 for bit in (0o4, 0o2, 0o40, 0o20, 0o44)])
    def test_a_file_in_it_with_any_right_for_others(self, tmp_path: Path, mode: int) -> None:
        own_folder(folder := tmp_path / "data")
        (file := folder / "coordinator.sqlite").touch()
        file.chmod(mode)
        own_folder(folder, ["others.sqlite"])
        with pytest.raises(NotPrivate, match=r"coordinator\.sqlite is open"):
            own_folder(folder, ["coordinator.sqlite"])

    def test_the_command_that_is_named_mends_it(self, tmp_path: Path) -> None:
        (folder := tmp_path / "data $HOME; 'x'").mkdir()
        (folder / "key").touch()
        for path in (folder / "key", folder):
            path.chmod(0o755)
        with pytest.raises(NotPrivate) as refused:
            own_folder(folder, ["key"])
        subprocess.run(["/bin/sh", "-c", str(refused.value).partition("run: ")[2]], check=True)
        own_folder(folder, ["key"])

    def test_what_a_link_leads_to_counts(self, tmp_path: Path) -> None:
        (open_folder := tmp_path / "open").mkdir()
        open_folder.chmod(0o755)
        (tmp_path / "data").symlink_to(open_folder)
        with pytest.raises(NotPrivate):
            own_folder(tmp_path / "data")

    def test_another_users_file(self, tmp_path: Path) -> None:
        own_folder(folder := tmp_path / "data")
        (file := folder / "key").touch()
        make_foreign(file)
        with pytest.raises(NotPrivate, match=r" belongs to .*, not to .*chown -R"):
            own_folder(folder, ["key"])

    def test_what_is_not_there_is_no_matter(self, tmp_path: Path) -> None:
        check_private([tmp_path / "nothing"])
