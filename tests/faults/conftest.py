"""A federation played by hand, and two real agents behind a network and on disks that tests can spoil."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.faulty_proxy import Faults, FaultyProxy
from tests.support.federation_rig import FederationRig
from tests.support.nodes import Consortium, consortium
from tests.support.places import Places
from tests.support.service import Service
from tests.support.small_disk import SmallDisk, small_disk

CHUNK_BYTES = 64 * 1024
DISK_BYTES = 32 * 1024**2


@dataclass(frozen=True, slots=True)
class Disks:
    """Of the coordinator: `data` without the artifacts, and `store` with them. Of an agent: `worker`."""

    data: SmallDisk
    store: SmallDisk
    worker: SmallDisk


@pytest.fixture
def rig(service: Service) -> FederationRig:
    """An owner on a running web process; background tasks are run by the test."""
    return FederationRig(service)


@pytest.fixture(scope="package")
def proxy() -> FaultyProxy:
    return FaultyProxy()


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the coordinator and the agents."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="package")
def disks(folder: Path) -> Iterator[Disks]:
    """Small ones under the places where `nodes` keep what they have."""
    with ExitStack() as mounted:
        places = (folder / "coordinator", folder / "coordinator" / "artifacts", folder / "south" / "state")
        yield Disks(*(mounted.enter_context(small_disk(place, DISK_BYTES)) for place in places))


@pytest.fixture(scope="package")
def nodes(engine: Places, folder: Path, proxy: FaultyProxy, disks: Disks) -> Iterator[Consortium]:
    """A coordinator, and two agents that reach it through the proxy alone."""
    settings = {"claim_seconds": 3, "reconcile_seconds": 1, "process_renew_seconds": 2, "chunk_bytes": CHUNK_BYTES}
    with consortium(folder, ["north", "south"], proxy, **settings) as running:
        yield running


@pytest.fixture(scope="package")
def admin_key(nodes: Consortium) -> str:
    return nodes.installation.create_admin_key()


@pytest.fixture(autouse=True)
def good_network(proxy: FaultyProxy) -> Iterator[None]:
    """No test leaves its faults to the next."""
    yield
    proxy.set(Faults())
