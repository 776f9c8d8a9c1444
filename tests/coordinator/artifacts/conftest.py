"""Fixtures: an organization, its worker, and chunks small enough to have several."""

import pytest


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """10,240 bytes make three chunks of 4,000."""
    monkeypatch.setenv("FEDLOOM_CHUNK_BYTES", "4000")
