"""A world for the tests of the contract, made once for each of their files."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.places import Places, settled
from tests.support.service import serving

if TYPE_CHECKING:
    from tests.coordinator.contract.world import World

NOBODY_WAITS = {"FEDLOOM_REQUESTS_PER_SECOND": "0"}


@pytest.fixture(scope="module")
def built(engine: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator["World"]:
    """Something of everything, on a running web process."""
    from tests.coordinator.contract.building import Builder  # loads torch, which most tests here do without
    from tests.support.federation_rig import FederationRig

    place = engine.migrated(tmp_path_factory.mktemp("world") / "data")
    with settled({**place, **NOBODY_WAITS}), serving() as service:
        yield Builder(FederationRig(service)).world()


@pytest.fixture
def world(built: "World") -> Iterator["World"]:
    """The same for every test."""
    yield built
    built.restore()
