"""Between real agents and a real coordinator stands a network that cuts, slows, truncates and doubles."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from federated.protocol import ArtifactReference
from tests.faults.adapters import whole_adapter
from tests.faults.conftest import CHUNK_BYTES
from tests.support.faulty_proxy import Faults, FaultyProxy
from tests.support.nodes import Consortium
from worker_agent.coordinator_api.client import CoordinatorClient

pytestmark = pytest.mark.once

ROUNDS = 4
CONTENT = random.Random(5).randbytes(20 * CHUNK_BYTES)
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
OVERHEAD = 1.05
"""Heads of requests and answers, against the bytes themselves."""
BAD: dict[str, Faults] = {
    "cut": Faults(cut_up_bytes=6_000, cut_down_bytes=5_000),
    "delayed": Faults(delay_seconds=0.05, seed=1),
    "throttled": Faults(bytes_per_second=20_000),
    "truncated": Faults(truncate_every=4, seed=2),
    "doubled": Faults(duplicate_every=1),
    "all of it": Faults(
        cut_up_bytes=9_000, cut_down_bytes=8_000, delay_seconds=0.01, truncate_every=9, duplicate_every=3, seed=3
    ),
}


@pytest.fixture(scope="module")
def undisturbed(nodes: Consortium, proxy: FaultyProxy) -> bytes:
    """The adapter of a run on a good network."""
    proxy.set(Faults())
    return whole_adapter(nodes, nodes.start(rounds=ROUNDS), ROUNDS)


class TestAFederation:
    @pytest.mark.parametrize("kind", list(BAD))
    def test_ends_with_the_bits_of_the_undisturbed_run(
        self, nodes: Consortium, proxy: FaultyProxy, undisturbed: bytes, kind: str
    ) -> None:
        proxy.set(BAD[kind])
        assert whole_adapter(nodes, nodes.start(rounds=ROUNDS), ROUNDS) == undisturbed
        done = proxy.counts
        assert done.cuts >= 4 or not BAD[kind].cut_up_bytes
        assert done.truncated >= 2 or not BAD[kind].truncate_every
        assert done.duplicated >= 6 or not BAD[kind].duplicate_every


@contextmanager
def reached_through(faults: Faults, nodes: Consortium, key: str) -> Iterator[tuple[CoordinatorClient, FaultyProxy]]:
    """The agent's own client, behind a proxy of its own."""
    proxy = FaultyProxy(faults)
    with proxy.before(nodes.installation.url) as url:
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as http:
            yield CoordinatorClient(http, None), proxy


class TestATransfer:
    CUT_BYTES = 3 * CHUNK_BYTES + 1_000

    def test_cut_again_and_again_sends_less_than_a_chunk_more_for_each_cut(
        self, nodes: Consortium, admin_key: str, tmp_path: Path
    ) -> None:
        source = tmp_path / "update"
        source.write_bytes(CONTENT)
        up, down = Faults(cut_up_bytes=self.CUT_BYTES), Faults(cut_down_bytes=self.CUT_BYTES)
        with reached_through(up, nodes, admin_key) as (client, proxy):
            stored = client.upload(source, DIGEST)
        assert stored == ArtifactReference(digest=DIGEST, size_bytes=len(CONTENT))
        assert proxy.counts.cuts >= 6
        assert proxy.counts.up_bytes < OVERHEAD * len(CONTENT) + proxy.counts.cuts * CHUNK_BYTES
        with reached_through(down, nodes, admin_key) as (client, proxy):
            download = client.cache(tmp_path / "cache").fetch(stored)
        assert download.path.read_bytes() == CONTENT
        assert proxy.counts.cuts >= 6
        assert download.transferred_bytes < len(CONTENT) + proxy.counts.cuts * CHUNK_BYTES
        assert proxy.counts.down_bytes < OVERHEAD * len(CONTENT) + proxy.counts.cuts * CHUNK_BYTES

    def test_whose_requests_all_come_twice_and_whose_answers_end_early_arrives_whole(
        self, nodes: Consortium, admin_key: str, tmp_path: Path
    ) -> None:
        content = random.Random(6).randbytes(5 * CHUNK_BYTES)
        source = tmp_path / "update"
        source.write_bytes(content)
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        with reached_through(Faults(duplicate_every=1, truncate_every=3), nodes, admin_key) as (client, proxy):
            stored = client.upload(source, digest)
            assert client.cache(tmp_path / "cache").fetch(stored).path.read_bytes() == content
        assert proxy.counts.duplicated >= 8
        assert proxy.counts.truncated >= 2
