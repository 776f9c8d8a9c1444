"""A worker that speaks HTTP, in a running federation."""

from pathlib import Path

import pytest

from tests.coordinator.clients import scene
from tests.coordinator.jobs.stage import Site, set_up
from tests.support.service import Service


@pytest.fixture
def site(service: Service, data_folder: Path) -> Site:
    owner = service.new_organization("owner")
    worker = service.new_worker(owner, "gpu", scene.CAPABILITIES)
    return Site(service, owner, worker, set_up(data_folder, owner.id, worker.id))
