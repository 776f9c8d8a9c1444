"""No coordinator process starts over data that other users of the machine may read, write, or own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from coordinator.app import create_app
from coordinator.settings import get_settings
from federated.private_files import NotPrivate
from tests.support.foreign import make_foreign
from tests.support.places import Files
from tests.support.service import forget_settings

COMMANDS = (
    ["up", "--port", "0"],
    ["serve", "--port", "0"],
    ["work"],
    ["beat"],
    ["migrate"],
    ["keys", "create-admin"],
    ["signing-key"],
)
CELERY = ["celery", "-A", "coordinator.celery_app", "worker", "--pool=threads"]


def refused(command: list[str], environment: dict[str, str]) -> str:
    """What the command says, which must be one line, and that it did not work."""
    done = subprocess.run(
        [sys.executable, "-m", *command], env={**os.environ, **environment}, umask=0o022,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def kept(tmp_path: Path) -> dict[str, str]:
    """A migrated installation that nobody else may look into."""
    environment = Files().migrated(tmp_path / "data")
    return {**environment, "FEDLOOM_STORE_URL": (tmp_path / "store").as_uri()}


class TestRefused:
    @pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
    def test_every_command_that_writes_refuses_an_open_folder_and_leaves_it_as_it_is(
        self, kept: dict[str, str], tmp_path: Path, command: list[str]
    ) -> None:
        (tmp_path / "data").chmod(0o755)
        before = sorted(path.name for path in (tmp_path / "data").iterdir())
        said = refused(["coordinator", *command], kept)
        assert said == (
            f"error: {tmp_path}/data is open to other users of this machine (mode 0755); "
            f"run: chmod -R go-rwx {tmp_path}/data"
        )
        assert sorted(path.name for path in (tmp_path / "data").iterdir()) == before

    def test_so_does_celerys_own_command(self, kept: dict[str, str], tmp_path: Path) -> None:
        (tmp_path / "data").chmod(0o755)
        assert "run: chmod -R go-rwx" in refused(CELERY, kept)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda folder: (folder / "data" / "coordinator.sqlite").chmod(0o644),
            lambda folder: (folder / "data" / "coordinator.sqlite-wal").touch(0o644),
            lambda folder: (folder / "data" / "signing-key.pem").touch(0o640),
            lambda folder: (folder / "data" / "queue").mkdir(0o750),
            lambda folder: (folder / "data" / "artifacts").mkdir(0o755),
            lambda folder: (folder / "store").mkdir(0o755),
            lambda folder: make_foreign(folder / "data"),
            lambda folder: make_foreign(folder / "data" / "coordinator.sqlite"),
        ],
        ids=["sqlite", "wal", "signing key", "queue", "artifacts", "store elsewhere", "owner", "owner of sqlite"],
    )
    def test_a_web_process_that_uvicorn_starts_itself_refuses_whatever_is_open(
        self,
        kept: dict[str, str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        spoil: Callable[[Path], object],
    ) -> None:
        for name, value in kept.items():
            monkeypatch.setenv(name, value)
        forget_settings()
        with TestClient(create_app()) as client:
            assert client.get("/healthz").status_code == 200
        before = os.umask(0o022)
        try:
            spoil(tmp_path)
        finally:
            os.umask(before)
        with pytest.raises(NotPrivate), TestClient(create_app()):
            pass


def test_a_folder_that_is_not_there_is_made_for_its_user_alone(tmp_path: Path) -> None:
    environment = {**os.environ, "FEDLOOM_DATA_FOLDER": str(tmp_path / "new" / "data")}
    for name in ("FEDLOOM_DATABASE_URL", "FEDLOOM_BROKER_URL", "FEDLOOM_STORE_URL"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "coordinator", "keys", "create-admin"]
    subprocess.run(command, env=environment, umask=0o022, check=True, capture_output=True, timeout=120)
    made = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert {path.stat().st_mode & 0o077 for path in made} == {0}
    assert get_settings().data_folder != tmp_path / "new" / "data"
