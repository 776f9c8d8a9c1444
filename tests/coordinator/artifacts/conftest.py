"""An organisation, its worker, and chunks small enough to have several."""

import pytest

from tests.support.service import (
    EnrolledWorker,
    Organization,
    Service,
)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """10,240 bytes make three chunks of 4,000."""
    monkeypatch.setenv("FEDLOOM_CHUNK_BYTES", "4000")


@pytest.fixture
def bank(service: Service) -> Organization:
    return service.new_organization("Bank")


@pytest.fixture
def worker(service: Service, bank: Organization) -> EnrolledWorker:
    return service.new_worker(bank, "gpu-1")
