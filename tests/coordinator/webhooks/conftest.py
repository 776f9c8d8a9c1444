"""Fixtures of a receiver on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.settings import get_settings
from tests.support.receiver import Receiver, receiving


@pytest.fixture
def local_receivers(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that allow receivers on this machine and retry at once."""
    monkeypatch.setenv("FEDLOOM_WEBHOOK_PRIVATE_ADDRESSES", "true")
    monkeypatch.setenv("FEDLOOM_WEBHOOK_RETRY_SECONDS", "0.000001")
    get_settings.cache_clear()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server
