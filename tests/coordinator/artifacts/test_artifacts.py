"""Downloads in ranges, read rights, holds and collection of artifacts, over HTTP and a folder store."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from coordinator.artifacts import service as artifacts
from coordinator.artifacts.store import chunks, objects
from coordinator.db.sessions import reading, utcnow, writing
from coordinator.errors import Conflict
from coordinator.models import Artifact, Grant, Hold, Upload
from federated.payloads.header import HeaderError
from tests.coordinator.artifacts.stored import (
    CONTENT,
    DAY_SECONDS,
    DIGEST,
    announce,
    count,
    digest_of,
    put_file,
    recorded,
)
from tests.support.service import (
    EnrolledWorker,
    Organization,
    Service,
    created,
    problem,
    upload,
)


class TestDownload:
    @pytest.fixture
    def path(self, data_folder: Path, worker: EnrolledWorker, tmp_path: Path) -> str:
        """Of an artifact that the worker may read."""
        recorded(tmp_path)
        with writing() as session:
            artifacts.grant(session, [(DIGEST, worker.id)])
        return f"/v1/artifacts/{DIGEST}"

    def test_it_gives_all_bytes_with_the_digest_as_etag(self, worker: EnrolledWorker, path: str) -> None:
        answer = worker.http.get(path)
        assert (answer.status_code, answer.content) == (200, CONTENT)
        assert answer.headers["etag"] == f'"{DIGEST}"'
        assert answer.headers["content-length"] == str(len(CONTENT))

    @pytest.mark.parametrize(
        ("text", "start", "end"),
        [
            ("bytes=0-0", 0, 1),
            ("bytes=100-199", 100, 200),
            ("bytes=10000-", 10_000, 10_240),
            ("bytes=10000-99999", 10_000, 10_240),
            ("bytes=-40", 10_200, 10_240),
            ("bytes=-99999", 0, 10_240),
        ],
    )
    def test_a_range_gives_those_bytes(
        self, worker: EnrolledWorker, path: str, text: str, start: int, end: int
    ) -> None:
        answer = worker.http.get(path, headers={"Range": text})
        assert (answer.status_code, answer.content) == (206, CONTENT[start:end])
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/10240"

    @pytest.mark.parametrize("text", ["bytes=10240-", "bytes=-0", "bytes=99999-100000"])
    def test_a_range_outside_is_refused(self, worker: EnrolledWorker, path: str, text: str) -> None:
        problem(worker.http.get(path, headers={"Range": text}), 416, "range_not_satisfiable")

    @pytest.mark.parametrize(
        "text", ["bytes=5-2", "bytes=0-1,5-6", "lines=1-2", "bytes=-", "nonsense", "bytes=0-" + "9" * 5000]
    )
    def test_what_is_no_single_range_gives_the_whole(self, worker: EnrolledWorker, path: str, text: str) -> None:
        answer = worker.http.get(path, headers={"Range": text})
        assert (answer.status_code, answer.content) == (200, CONTENT)

    def test_a_range_of_something_else_gives_the_whole(self, worker: EnrolledWorker, path: str) -> None:
        for tag, status in ((f'"{DIGEST}"', 206), ('"other"', 200)):
            answer = worker.http.get(path, headers={"Range": "bytes=0-9", "If-Range": tag})
            assert answer.status_code == status

    def test_what_one_has_is_not_sent_again(self, worker: EnrolledWorker, path: str) -> None:
        answer = worker.http.get(path, headers={"If-None-Match": f'"other", "{DIGEST}"'})
        assert (answer.status_code, answer.content) == (304, b"")

    def test_knowing_the_digest_gives_no_right(
        self, service: Service, bank: Organization, worker: EnrolledWorker, path: str
    ) -> None:
        other = service.new_worker(bank, "gpu-2")
        for client in (other.http, bank.owner):
            problem(client.get(path), 404, "not_found")
        problem(worker.http.get(f"/v1/artifacts/{digest_of(b'other')}"), 404, "not_found")
        problem(service.anonymous.get(path), 401, "credentials_missing")

    def test_who_uploaded_has_no_right_to_read_by_that(self, service: Service, worker: EnrolledWorker) -> None:
        upload(worker.http, b"mine", digest_of(b"mine"))
        problem(worker.http.get(f"/v1/artifacts/{digest_of(b'mine')}"), 404, "not_found")

    def test_a_right_ends_with_its_time(self, worker: EnrolledWorker, tmp_path: Path) -> None:
        recorded(tmp_path)
        now = utcnow()
        for seconds, status in ((-1, 404), (60, 200)):
            with writing() as session:
                artifacts.grant(session, [(DIGEST, worker.id)], now + timedelta(seconds=seconds))
            assert worker.http.get(f"/v1/artifacts/{DIGEST}").status_code == status

    def test_a_right_is_never_shortened(self, worker: EnrolledWorker, path: str) -> None:
        with writing() as session:
            artifacts.grant(session, [(DIGEST, worker.id)], utcnow() - timedelta(seconds=1))
        assert worker.http.get(path).status_code == 200
        assert count(Grant) == 1

    def test_a_malformed_digest_is_refused(self, worker: EnrolledWorker) -> None:
        problem(worker.http.get("/v1/artifacts/sha256:abc"), 422, "request_invalid")


class TestHolds:
    def test_recording_again_adds_no_row(self, data_folder: Path, tmp_path: Path) -> None:
        recorded(tmp_path)
        recorded(tmp_path)
        assert (count(Artifact), count(Hold)) == (1, 1)

    def test_release_ends_one_part_or_all(self, data_folder: Path, tmp_path: Path) -> None:
        stored = recorded(tmp_path)
        with writing() as session:
            for part in ("note", "adapter"):
                artifacts.hold(session, stored.digest, "rnd_1", part)
            artifacts.hold(session, stored.digest, "rnd_2", "state")
            artifacts.release(session, "rnd_1", "note")
        with reading() as session:
            found = session.execute(select(Hold.holder, Hold.part).order_by(Hold.holder, Hold.part)).all()
        assert [tuple(row) for row in found] == [("rnd_1", "adapter"), ("rnd_1", "state"), ("rnd_2", "state")]
        with writing() as session:
            artifacts.release(session, "rnd_1")
        assert count(Hold) == 1

    def test_bytes_that_are_gone_are_not_recorded(self, data_folder: Path, tmp_path: Path) -> None:
        stored = put_file(tmp_path)
        objects.drop(stored.digest)

        def record() -> None:
            with writing() as session:
                artifacts.record(session, stored, "rnd_1", "state")

        with pytest.raises(Conflict, match="no longer in the store"):
            record()
        assert (count(Artifact), count(Hold)) == (0, 0)


class TestCollection:
    def later(self, seconds: float) -> Any:
        return utcnow() + timedelta(seconds=seconds)

    def test_what_nobody_holds_goes_after_a_day(self, data_folder: Path, tmp_path: Path) -> None:
        kept, freed = recorded(tmp_path, b"kept"), recorded(tmp_path, b"freed", "rnd_2")
        with writing() as session:
            artifacts.grant(session, [(freed.digest, "wkr_1")])
            artifacts.release(session, "rnd_2")
        assert artifacts.collect(self.later(DAY_SECONDS - 60)) == 0
        assert artifacts.collect(self.later(DAY_SECONDS + 60)) == len(b"freed")
        assert (objects.size_of(kept.digest), objects.size_of(freed.digest)) == (4, None)
        assert (count(Artifact), count(Grant)) == (1, 0)

    def test_what_was_never_recorded_goes_after_a_day(self, data_folder: Path, tmp_path: Path) -> None:
        stored = put_file(tmp_path)
        artifacts.collect(self.later(DAY_SECONDS - 60))
        assert objects.size_of(stored.digest) is not None
        artifacts.collect(self.later(DAY_SECONDS + 60))
        assert objects.size_of(stored.digest) is None

    def test_an_upload_that_was_given_up_goes_with_its_chunks(self, service: Service, worker: EnrolledWorker) -> None:
        upload_id = created(announce(worker.http))["upload_id"]
        worker.http.put(f"/v1/artifacts/uploads/{upload_id}/chunks/0", content=CONTENT)
        artifacts.collect(self.later(7 * DAY_SECONDS - 60))
        assert (count(Upload), tuple(sorted(chunks.sizes(upload_id)))) == (1, (0,))
        artifacts.collect(self.later(7 * DAY_SECONDS + 60))
        assert (count(Upload), tuple(sorted(chunks.sizes(upload_id)))) == (0, ())

    def test_more_than_one_batch_is_collected(self, data_folder: Path, tmp_path: Path) -> None:
        for number in range(105):
            recorded(tmp_path, b"%03d" % number)
        with writing() as session:
            artifacts.release(session, "rnd_1")
        assert artifacts.collect(self.later(DAY_SECONDS + 60)) == 3 * 105
        assert count(Artifact) == 0


class TestHeader:
    def test_it_is_read_without_the_data(self, data_folder: Path, tmp_path: Path) -> None:
        facts = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"facts": '{"n":1}'}}
        raw = json.dumps(facts).encode()
        stored = put_file(tmp_path, len(raw).to_bytes(8, "little") + raw + bytes(8))
        header = artifacts.read_header(stored.digest)
        assert (header.tensors["a"].shape, header.facts, header.file_bytes) == ((2,), {"n": 1}, 16 + len(raw))

    @pytest.mark.parametrize(
        "content", [b"", b"short", (2**60).to_bytes(8, "little"), bytes([200, 0, 0, 0, 0, 0, 0, 0])]
    )
    def test_what_is_none_is_refused(self, data_folder: Path, tmp_path: Path, content: bytes) -> None:
        stored = put_file(tmp_path, content)
        with pytest.raises(HeaderError):
            artifacts.read_header(stored.digest)
