"""A worker in a running federation, in this process or speaking HTTP."""

from pathlib import Path

import pytest

from tests.coordinator.clients import scene
from tests.coordinator.jobs.job_rig import JobRig, Site, set_up
from tests.support.service import Service


@pytest.fixture
def rig(data_folder: Path) -> JobRig:
    return set_up(data_folder)


@pytest.fixture
def site(service: Service, data_folder: Path) -> Site:
    owner = service.new_organization("owner")
    worker = service.new_worker(owner, "gpu", scene.CAPABILITIES)
    return Site(service, owner, worker, set_up(data_folder, owner.id, worker.id))
