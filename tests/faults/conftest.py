"""A federation played by hand, and two real agents behind a network and on disks that tests can spoil."""

from collections.abc import Iterator

import pytest

from tests.support.faulty_proxy import Faults, FaultyProxy
from tests.support.nodes import Consortium, consortium
from tests.support.service import Service
from tests.support.small_disk import SmallDisk, small_disk
from tests.support.stage import Stage

CHUNK_BYTES = 64 * 1024
STORE_BYTES = 32 * 1024**2


@pytest.fixture
def stage(service: Service) -> Stage:
    """An owner on a running web process; background tasks are run by the test."""
    return Stage(service)


@pytest.fixture(scope="session")
def proxy() -> FaultyProxy:
    return FaultyProxy()


@pytest.fixture(scope="session")
def store_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    """The disk under the store of `nodes`; an ordinary folder where this process may not mount one."""
    with small_disk(tmp_path_factory.mktemp("store"), STORE_BYTES) as disk:
        yield disk


@pytest.fixture(scope="session")
def nodes(
    tmp_path_factory: pytest.TempPathFactory, proxy: FaultyProxy, store_disk: SmallDisk
) -> Iterator[Consortium]:
    """A coordinator, and two agents that reach it through the proxy alone."""
    settings = {
        "claim_seconds": 3, "reconcile_seconds": 1, "chunk_bytes": CHUNK_BYTES,
        "store_url": store_disk.folder.as_uri(),
    }  # fmt: skip
    with consortium(tmp_path_factory.mktemp("faults"), ["north", "south"], proxy, **settings) as running:
        yield running


@pytest.fixture(autouse=True)
def good_network(proxy: FaultyProxy) -> Iterator[None]:
    """No test leaves its faults to the next."""
    yield
    proxy.set(Faults())
