"""Fixtures for everything that needs a coordinator: a data folder of its own, migrated; and one that serves."""

import gc
import os
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

# Tests run side by side. Threads that spin while they wait for each other cost most of two cores, be it all cores for
# every small sum or the conductor's two threads, so processes take one where they can and none of them spins.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from coordinator.telemetry import logs
from federated.private_files import keep_private
from tests.support import service as support
from tests.support.places import Places, on_servers, places, refused, settled

logs.configure("json", "tests")
keep_private()  # as every program of ours does first: folders that tests make for these are refused otherwise


_LONG = tuple(
    f"tests/{name}/" for name in ("fuzz", "chaos", "end_to_end", "faults", "benchmarks", "deploy", "federated")
)
"""Where a file may take a minute. These come after the slow ones and before all others, or the last of them would
keep all but one core waiting."""

_SHARING = {
    "tests/end_to_end": (
        "approval",
        "crashes",
        "federation",
        "private_files",
        "private_parts",
        "ranks_of_their_own",
        "simulation",
    ),
    "tests/faults": ("disk", "network", "outages"),
}
"""Folder -> its files that use one installation. They run in one process, so that it is started once."""

_SLOW_SECONDS = 1_200
"""What a slow test may take beside three others on a machine that is slow itself."""


_ENGINELESS = pytest.StashKey[Counter[str]]()


class ByInstallation(LoadFileScheduling):  # type: ignore[misc]
    """Tests of a file run in one process; so do those of all files that share an installation."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder, _, name = file.rpartition("/")
        shared = name.removeprefix("test_").removesuffix(".py") in _SHARING.get(folder, ())
        return folder if shared else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByInstallation | None:
    """Another way to distribute tests than `--dist loadfile` stays as it is."""
    return ByInstallation(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests about the engines that this run does without are deselected, and on servers those that use no engine."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    for item in slow:
        item.add_marker(pytest.mark.timeout(_SLOW_SECONDS))
    first = {item.path for item in slow}
    items.sort(key=lambda item: (item.path not in first, not item.nodeid.startswith(_LONG)))
    without = ("sqlite", "once") if on_servers() else ("engines",)
    elsewhere = {item for item in items if any(map(item.get_closest_marker, without))}
    if on_servers():
        engineless = [item for item in items if not (_uses_engine(item) or item.get_closest_marker("engines"))]
        config.stash[_ENGINELESS] = Counter(item.nodeid.partition("::")[0] for item in engineless)
        elsewhere.update(engineless)
    if elsewhere:
        config.hook.pytest_deselected(items=[item for item in items if item in elsewhere])
        items[:] = [item for item in items if item not in elsewhere]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Says which tests were left out on servers because they use no engine."""
    if engineless := config.stash.get(_ENGINELESS, None):
        terminalreporter.section(f"{engineless.total()} tests use no engine and ran on the first one alone")
        for file, count in sorted(engineless.items()):
            terminalreporter.line(f"{count:5} {file}")


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is loaded by now stays: Python's collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With FEDLOOM_LEAVE_NOTHING_OUT, as in CI, a test that skips for want of something fails."""
    report = yield
    if report.skipped and os.environ.get("FEDLOOM_LEAVE_NOTHING_OUT"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was left out: {report.longrepr[-1]}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool | None, bool | None]:
    """Only a test with the fixture `engine` gets a place for a coordinator."""
    with nullcontext() if _uses_engine(item) else refused(item.nodeid):
        return (yield)


def _uses_engine(item: pytest.Item) -> bool:
    return "engine" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def engine() -> Places:
    """Database, queue and store of this run: whatever opens them requests this, itself or by another fixture."""
    return places()


@pytest.fixture
def data_folder(engine: Places, tmp_path: Path) -> Iterator[Path]:
    """This process is a coordinator over a data folder and a place of its own, migrated and empty. No server."""
    folder = tmp_path / "data"
    with settled(engine.migrated(folder)):
        yield folder


@pytest.fixture
def service(data_folder: Path) -> Iterator[support.Service]:
    """A real web process over `data_folder`, in a thread."""
    with support.serving() as running:
        yield running
