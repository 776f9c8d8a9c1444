"""Conventions common to all operations, over real HTTP."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from coordinator.db.sessions import reading
from coordinator.models import Organization
from tests.support.service import forget_settings, serving

REQUESTS = 24


@pytest.mark.parametrize("keyed", [False, True])
def test_a_transaction_waits_for_no_thread_to_end(
    keyed: bool, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one thread: whoever has it waits for the transaction of a request that has done its work."""
    monkeypatch.setenv("FEDLOOM_WEB_THREADS", "1")
    forget_settings()
    wanted = {f"organization {number}" for number in range(REQUESTS)}
    with serving() as service, ThreadPoolExecutor(REQUESTS) as callers:

        def make(name: str) -> int:
            headers = {"Idempotency-Key": name} if keyed else {}
            return service.admin.post("/v1/organizations", json={"name": name}, headers=headers).status_code

        assert list(callers.map(make, wanted)) == REQUESTS * [201]
    with reading() as session:
        assert set(session.scalars(select(Organization.name))) >= wanted
