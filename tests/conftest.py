"""Fixtures for everything that needs a coordinator: a data folder of its own, migrated; and one that serves."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from coordinator import logs
from tests.support import service as support

logs.configure("json", "tests")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With FEDLOOM_LEAVE_NOTHING_OUT, as in CI, a test that skips for want of something fails."""
    report = yield
    if report.skipped and os.environ.get("FEDLOOM_LEAVE_NOTHING_OUT"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was left out: {report.longrepr[-1]}"
    return report


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
