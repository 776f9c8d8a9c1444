"""Fixtures for everything that needs a coordinator: a data folder of its own, migrated; and one that serves."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import logs
from tests.support import service as support

logs.configure("json", "tests")


@pytest.fixture(scope="session")
def migrated_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file at the head of the real migrations."""
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDLOOM_DATA_FOLDER", str(folder))
        support.forget_settings()
        template = support.make_template(folder)
    support.forget_settings()
    return template


@pytest.fixture
def data_folder(tmp_path: Path, migrated_template: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This process works in a data folder of its own, migrated and empty. No server."""
    folder = tmp_path / "data"
    support.copy_template(migrated_template, folder)
    monkeypatch.setenv("FEDLOOM_DATA_FOLDER", str(folder))
    support.forget_settings()
    yield folder
    support.forget_settings()


@pytest.fixture
def service(data_folder: Path) -> Iterator[support.Service]:
    """A real web process over `data_folder`, in a thread."""
    with support.serving() as running:
        yield running
