"""Chunked uploads and ranged downloads, interrupted and resumed."""

import hashlib
import os
from pathlib import Path

import pytest

from federated.atomic_files import UNFINISHED_SUFFIX
from federated.protocol import ArtifactReference
from tests.worker_agent.faults import Fault
from tests.worker_agent.recording_coordinator import CHUNK_BYTES, RecordingCoordinator
from worker_agent.coordinator_api.client import CoordinatorClient
from worker_agent.errors import CoordinatorAway, CorruptBytes, NotThere

CONTENT = b"0123456789abcdefghijABCDEFGHIJ-----"
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
REFERENCE = ArtifactReference(digest=DIGEST, size_bytes=len(CONTENT))
CHUNK = "PUT /v1/artifacts/uploads/upl_1/chunks/%s"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "update.safetensors"
    path.write_bytes(CONTENT)
    return path


class TestUpload:
    def test_it_arrives_whole_in_chunks(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator, source: Path
    ) -> None:
        assert client.upload(source, DIGEST) == REFERENCE
        assert coordinator.artifacts[DIGEST] == CONTENT
        assert coordinator.count(CHUNK % r"\d") == -(-len(CONTENT) // CHUNK_BYTES)

    def test_only_missing_chunks_are_sent_after_it_broke_off(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator, source: Path
    ) -> None:
        coordinator.fail(CHUNK % 2, Fault(403, body={"code": "broken_off"}))
        with pytest.raises(Exception, match="broken_off"):
            client.upload(source, DIGEST)
        coordinator.calls.clear()
        assert client.upload(source, DIGEST) == REFERENCE
        assert [call for call in coordinator.calls if call.startswith("PUT")] == [CHUNK % 2, CHUNK % 3]

    def test_a_chunk_that_failed_is_sent_again(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator, source: Path
    ) -> None:
        coordinator.fail(CHUNK % 1, Fault(502), Fault(lose_answer=True))
        assert client.upload(source, DIGEST) == REFERENCE
        assert coordinator.count(CHUNK % 1) == 3

    def test_what_the_coordinator_has_is_not_sent(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator, source: Path
    ) -> None:
        client.upload(source, DIGEST)
        coordinator.calls.clear()
        assert client.upload(source, DIGEST) == REFERENCE
        assert coordinator.calls == ["POST /v1/artifacts/uploads"]

    def test_an_upload_that_is_being_assembled_is_waited_for(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator, source: Path
    ) -> None:
        coordinator.assembling_polls = 3
        assert client.upload(source, DIGEST) == REFERENCE
        assert coordinator.count("GET /v1/artifacts/uploads/upl_1") == 3

    def test_other_bytes_than_announced_are_an_error(self, client: CoordinatorClient, source: Path) -> None:
        with pytest.raises(CorruptBytes, match=r"update\.safetensors"):
            client.upload(source, "sha256:" + "0" * 64)


class TestDownload:
    def test_it_is_fetched_once(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator, tmp_path: Path
    ) -> None:
        coordinator.artifacts[DIGEST] = CONTENT
        cache = client.cache(tmp_path / "cache")
        first, second = cache.fetch(REFERENCE), cache.fetch(REFERENCE)
        assert first.path.read_bytes() == CONTENT
        assert (first.transferred_bytes, second.transferred_bytes) == (len(CONTENT), 0)
        assert coordinator.ranges == [None]

    def test_a_download_that_broke_off_goes_on_where_it_stopped(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator, tmp_path: Path
    ) -> None:
        content = os.urandom(3 * 1024 * 1024)
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        coordinator.artifacts[digest] = content
        coordinator.fail(f"GET /v1/artifacts/{digest}", *[Fault(cut_after_bytes=1024 * 1024 + 7)] * 2)
        download = client.cache(tmp_path).fetch(ArtifactReference(digest=digest, size_bytes=len(content)))
        assert download.path.read_bytes() == content
        assert coordinator.ranges[0] is None
        assert len(coordinator.ranges) == 3
        assert all(wanted is not None for wanted in coordinator.ranges[1:])

    def test_what_came_before_each_cut_is_not_fetched_again_however_little_it_was(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator, tmp_path: Path
    ) -> None:
        content = os.urandom(300_000)
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        coordinator.artifacts[digest] = content
        coordinator.fail(f"GET /v1/artifacts/{digest}", *[Fault(cut_after_bytes=30_000)] * 9)
        download = client.cache(tmp_path).fetch(ArtifactReference(digest=digest, size_bytes=len(content)))
        assert download.path.read_bytes() == content
        assert coordinator.ranges == [None, *(f"bytes={30_000 * step}-" for step in range(1, 10))]

    def test_a_copy_that_was_damaged_on_this_disk_is_fetched_anew(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator, tmp_path: Path
    ) -> None:
        coordinator.artifacts[DIGEST] = CONTENT
        cache = client.cache(tmp_path / "cache")
        path = cache.fetch(REFERENCE).path
        path.write_bytes(b"1" + CONTENT[1:])
        assert cache.fetch(REFERENCE).path.read_bytes() == CONTENT

    def test_what_an_earlier_process_left_is_used(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator, tmp_path: Path
    ) -> None:
        coordinator.artifacts[DIGEST] = CONTENT
        (tmp_path / (DIGEST.removeprefix("sha256:") + UNFINISHED_SUFFIX)).write_bytes(CONTENT[:12])
        download = client.cache(tmp_path).fetch(REFERENCE)
        assert download.path.read_bytes() == CONTENT
        assert (download.transferred_bytes, coordinator.ranges) == (len(CONTENT) - 12, ["bytes=12-"])

    def test_a_server_that_sends_all_again_is_understood(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator, tmp_path: Path
    ) -> None:
        coordinator.artifacts[DIGEST], coordinator.knows_ranges = CONTENT, False
        (tmp_path / (DIGEST.removeprefix("sha256:") + UNFINISHED_SUFFIX)).write_bytes(CONTENT[:12])
        assert client.cache(tmp_path).fetch(REFERENCE).path.read_bytes() == CONTENT
        assert coordinator.ranges == ["bytes=12-"]

    def test_a_damaged_leftover_is_fetched_anew(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator, tmp_path: Path
    ) -> None:
        coordinator.artifacts[DIGEST] = CONTENT
        (tmp_path / (DIGEST.removeprefix("sha256:") + UNFINISHED_SUFFIX)).write_bytes(b"rubbish")
        assert client.cache(tmp_path).fetch(REFERENCE).path.read_bytes() == CONTENT
        assert coordinator.ranges == ["bytes=7-", None]

    def test_an_artifact_that_is_not_there_is_not_asked_for_again(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator, tmp_path: Path
    ) -> None:
        with pytest.raises(NotThere, match="artifact_unknown"):
            client.cache(tmp_path).fetch(REFERENCE)
        assert len(coordinator.ranges) == 1

    def test_a_coordinator_that_stays_away_ends_the_attempt(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator, tmp_path: Path
    ) -> None:
        coordinator.fail(f"GET /v1/artifacts/{DIGEST}", *[Fault(503)] * 5)
        with pytest.raises(CoordinatorAway, match="503"):
            client.cache(tmp_path).fetch(REFERENCE)

    def test_the_files_used_longest_ago_go_first(self, client: CoordinatorClient, tmp_path: Path) -> None:
        folder = tmp_path / "cache"
        cache = client.cache(folder)
        for age, name in enumerate("abcd"):
            (folder / name).write_bytes(b"1234567890")
            os.utime(folder / name, (1000 - age, 1000 - age))
        cache.trim(keep_bytes=25, keep_files=1)
        assert sorted(file.name for file in folder.iterdir()) == ["a", "b"]
        cache.trim(keep_bytes=0, keep_files=1)
        assert [file.name for file in folder.iterdir()] == ["a"]
