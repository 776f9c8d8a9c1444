"""Fixtures for what needs federations and their background tasks."""

from typing import TYPE_CHECKING

import pytest

from tests.support.service import EnrolledWorker, Organization, Service

if TYPE_CHECKING:
    from tests.support.federation_rig import FederationRig


@pytest.fixture
def bank(service: Service) -> Organization:
    return service.new_organization("Bank")


@pytest.fixture
def worker(service: Service, bank: Organization) -> EnrolledWorker:
    return service.new_worker(bank, "gpu-1")


@pytest.fixture
def rig(service: Service) -> "FederationRig":
    """An owner on a running web process; background tasks are run by the test."""
    from tests.support.federation_rig import FederationRig  # loads torch, which most tests here do without

    return FederationRig(service)
