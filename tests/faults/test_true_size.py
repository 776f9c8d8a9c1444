"""A large file over a network that is cut every 50 MB, both ways, with the chunks that every installation has."""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from coordinator.settings import Settings
from federated.protocol import ArtifactReference
from tests.support.faulty_proxy import Faults, FaultyProxy
from tests.support.installation import Installation, installed
from tests.support.places import Places
from worker_agent.coordinator_api.client import CoordinatorClient

pytestmark = pytest.mark.slow

MB = 1000**2
SIZE_BYTES = 320 * MB
CUT_BYTES = 50 * MB
CHUNK_BYTES = Settings.model_fields["chunk_bytes"].default
OVERHEAD = 1.01
"""Heads of requests and answers, against the bytes themselves."""


@pytest.fixture(scope="module")
def installation(engine: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installed(tmp_path_factory.mktemp("large") / "coordinator") as running:
        yield running


def test_each_cut_costs_less_than_a_chunk(installation: Installation, tmp_path: Path) -> None:
    source = tmp_path / "update"
    source.write_bytes(random.Random(7).randbytes(MB) * (SIZE_BYTES // MB))
    with source.open("rb") as file:
        digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    headers = {"Authorization": f"Bearer {installation.create_admin_key()}"}
    proxy = FaultyProxy(Faults(cut_up_bytes=CUT_BYTES))
    with (
        proxy.before(installation.url) as url,
        httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as http,
    ):
        client = CoordinatorClient(http, None)
        stored = client.upload(source, digest)
        assert stored == ArtifactReference(digest=digest, size_bytes=SIZE_BYTES)
        up, up_cuts = proxy.counts.up_bytes, proxy.counts.cuts
        proxy.set(Faults(cut_down_bytes=CUT_BYTES))
        download = client.cache(tmp_path / "cache").fetch(stored)
        down, down_cuts = proxy.counts.down_bytes, proxy.counts.cuts
    with download.path.open("rb") as file:
        assert "sha256:" + hashlib.file_digest(file, "sha256").hexdigest() == digest
    assert up_cuts >= SIZE_BYTES // CUT_BYTES <= down_cuts
    assert up < OVERHEAD * SIZE_BYTES + up_cuts * CHUNK_BYTES
    assert down < OVERHEAD * SIZE_BYTES + down_cuts * CHUNK_BYTES
