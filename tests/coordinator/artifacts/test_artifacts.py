"""Uploads in chunks, downloads in ranges, rights, holds and collection: over HTTP and a folder store."""

import hashlib
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from coordinator import nudge
from coordinator.artifacts import service as artifacts
from coordinator.artifacts import store, tasks
from coordinator.database import reading, utcnow, writing
from coordinator.errors import Conflict
from coordinator.models import Artifact, Grant, Hold, Upload
from federated.header import HeaderError
from tests.support.service import (
    EnrolledWorker,
    Organization,
    Service,
    created,
    forget_settings,
    problem,
    queued,
    upload,
)

CONTENT = bytes(range(256)) * 40
DAY_SECONDS = 86_400


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


DIGEST = digest_of(CONTENT)


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


def announce(client: httpx.Client, content: bytes = CONTENT, **fields: Any) -> httpx.Response:
    body = {"size_bytes": len(content), "digest": digest_of(content), **fields}
    return client.post("/v1/artifacts/uploads", json=body)


def put_file(folder: Path, content: bytes = CONTENT) -> store.Stored:
    path = folder / "file"
    path.write_bytes(content)
    return artifacts.put_file(path)


def recorded(folder: Path, content: bytes = CONTENT, holder: str = "rnd_1") -> store.Stored:
    stored = put_file(folder, content)
    with writing() as session:
        artifacts.record(session, stored, holder, "state")
    return stored


def count(model: type) -> int:
    with reading() as session:
        return session.query(model).count()


class TestUpload:
    def test_one_chunk_is_complete_at_once(self, service: Service, worker: EnrolledWorker) -> None:
        answer = upload(worker.http, CONTENT, DIGEST)
        assert (answer["state"], answer["artifact"]) == ("complete", {"digest": DIGEST, "size_bytes": len(CONTENT)})
        assert artifacts.local_file(DIGEST).read_bytes() == CONTENT
        with reading() as session:
            assert artifacts.uploaded_by(session, worker.id, DIGEST) == len(CONTENT)
        assert store.chunks_present(answer["upload_id"]) == ()

    def test_several_chunks_are_put_together_in_the_background(
        self, small_chunks: None, service: Service, worker: EnrolledWorker
    ) -> None:
        answer = upload(worker.http, CONTENT, DIGEST)
        path = f"/v1/artifacts/uploads/{answer['upload_id']}"
        assert (answer["state"], answer["chunks"]) == ("assembling", 3)
        with reading() as session:
            assert artifacts.uploaded_by(session, worker.id, DIGEST) is None
        assert queued(nudge.ASSEMBLE) == [[answer["upload_id"]]]
        tasks.assemble(answer["upload_id"])
        tasks.assemble(answer["upload_id"])
        assert worker.http.get(path).json()["state"] == "complete"
        assert worker.http.post(f"{path}/complete").json()["state"] == "complete"
        assert artifacts.local_file(DIGEST).read_bytes() == CONTENT

    def test_complete_of_several_answers_202_and_where_to_look(
        self, small_chunks: None, service: Service, worker: EnrolledWorker
    ) -> None:
        announced = created(announce(worker.http))
        path = f"/v1/artifacts/uploads/{announced['upload_id']}"
        for index in range(3):
            worker.http.put(f"{path}/chunks/{index}", content=CONTENT[4000 * index : 4000 * (index + 1)])
        answer = worker.http.post(f"{path}/complete")
        assert (answer.status_code, answer.headers["location"]) == (202, path)

    def test_it_goes_on_where_it_stopped(self, small_chunks: None, service: Service, worker: EnrolledWorker) -> None:
        first = created(announce(worker.http))
        path = f"/v1/artifacts/uploads/{first['upload_id']}"
        assert worker.http.put(f"{path}/chunks/1", content=CONTENT[4000:8000]).status_code == 204
        second = created(announce(worker.http))
        assert (second["upload_id"], second["chunks_present"]) == (first["upload_id"], [1])
        found = problem(worker.http.post(f"{path}/complete"), 409, "chunks_missing")
        assert "first: 0, 2" in found["detail"]
        assert upload(worker.http, CONTENT, DIGEST)["state"] == "assembling"

    def test_what_one_uploaded_before_is_complete_at_once(self, service: Service, worker: EnrolledWorker) -> None:
        first = upload(worker.http, CONTENT, DIGEST)
        again = created(announce(worker.http))
        assert (again["state"], again["upload_id"]) == ("complete", first["upload_id"])

    def test_what_somebody_else_uploaded_must_be_uploaded_again(
        self, service: Service, bank: Organization, worker: EnrolledWorker
    ) -> None:
        upload(worker.http, CONTENT, DIGEST)
        other = service.new_worker(bank, "gpu-2")
        announced = created(announce(other.http))
        assert (announced["state"], announced["chunks_present"]) == ("open", [])
        problem(other.http.post(f"/v1/artifacts/uploads/{announced['upload_id']}/complete"), 409, "chunks_missing")
        with reading() as session:
            assert artifacts.uploaded_by(session, other.id, DIGEST) is None
        assert upload(other.http, CONTENT, DIGEST)["state"] == "complete"

    @pytest.mark.parametrize("many", [False, True])
    def test_other_bytes_than_announced_are_refused(
        self, monkeypatch: pytest.MonkeyPatch, data_folder: Path, service: Service, worker: EnrolledWorker, many: bool
    ) -> None:
        if many:
            monkeypatch.setenv("FEDLOOM_CHUNK_BYTES", "4000")
            forget_settings()
        announced = created(announce(worker.http))
        path = f"/v1/artifacts/uploads/{announced['upload_id']}"
        wrong, step = bytes(len(CONTENT)), announced["chunk_bytes"]
        for index in range(announced["chunks"]):
            worker.http.put(f"{path}/chunks/{index}", content=wrong[step * index : step * (index + 1)])
        answer = worker.http.post(f"{path}/complete")
        if many:
            tasks.assemble(announced["upload_id"])
            answer = worker.http.post(f"{path}/complete")
        assert DIGEST in problem(answer, 422, "digest_mismatch")["detail"]
        shown = worker.http.get(path).json()
        assert (shown["state"], shown["problem"]["code"]) == ("failed", "digest_mismatch")
        assert count(Artifact) == 0
        assert store.size_of(DIGEST) is None
        assert created(announce(worker.http))["upload_id"] != announced["upload_id"]

    @pytest.mark.parametrize("length", [0, 9_999, 10_241])
    def test_a_chunk_of_another_size_is_refused(self, service: Service, worker: EnrolledWorker, length: int) -> None:
        announced = created(announce(worker.http))
        path = f"/v1/artifacts/uploads/{announced['upload_id']}"
        answer = worker.http.put(f"{path}/chunks/0", content=bytes(length))
        assert "10240 bytes" in problem(answer, 422, "chunk_size_wrong")["detail"]
        assert worker.http.get(path).json()["chunks_present"] == []

    def test_a_chunk_without_announced_length_is_measured(self, service: Service, worker: EnrolledWorker) -> None:
        announced = created(announce(worker.http))
        path = f"/v1/artifacts/uploads/{announced['upload_id']}/chunks/0"
        problem(worker.http.put(path, content=iter([CONTENT, b"x"])), 422, "chunk_size_wrong")
        assert worker.http.put(path, content=iter([CONTENT[:7], CONTENT[7:]])).status_code == 204

    def test_a_chunk_that_breaks_off_is_not_there(self, service: Service, worker: EnrolledWorker) -> None:
        announced = created(announce(worker.http))
        path = f"/v1/artifacts/uploads/{announced['upload_id']}"

        def broken() -> Any:
            yield CONTENT[:100]
            raise ConnectionError("cable")

        with pytest.raises(ConnectionError):
            worker.http.put(f"{path}/chunks/0", content=broken(), headers={"Content-Length": str(len(CONTENT))})
        assert worker.http.get(path).json()["chunks_present"] == []

    @pytest.mark.parametrize(("index", "status"), [("1", 404), ("-1", 404), ("one", 422)])
    def test_a_chunk_that_does_not_exist_is_refused(
        self, service: Service, worker: EnrolledWorker, index: str, status: int
    ) -> None:
        announced = created(announce(worker.http))
        path = f"/v1/artifacts/uploads/{announced['upload_id']}/chunks/{index}"
        assert worker.http.put(path, content=CONTENT).status_code == status

    def test_a_complete_upload_takes_no_chunk(self, service: Service, worker: EnrolledWorker) -> None:
        done = upload(worker.http, CONTENT, DIGEST)
        path = f"/v1/artifacts/uploads/{done['upload_id']}/chunks/0"
        problem(worker.http.put(path, content=bytes(len(CONTENT))), 409, "upload_closed")
        assert artifacts.local_file(DIGEST).read_bytes() == CONTENT

    def test_another_principals_upload_is_not_there(
        self, service: Service, bank: Organization, worker: EnrolledWorker
    ) -> None:
        path = f"/v1/artifacts/uploads/{created(announce(worker.http))['upload_id']}"
        other = service.new_worker(bank, "gpu-2")
        for answer in (
            other.http.get(path),
            other.http.put(f"{path}/chunks/0", content=CONTENT),
            other.http.post(f"{path}/complete"),
            bank.owner.get(path),
        ):
            problem(answer, 404, "not_found")

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("digest", "sha256:abc"),
            ("digest", "md5:" + "0" * 64),
            ("size_bytes", 0),
            ("size_bytes", "many"),
            ("x", 1),
        ],
    )
    def test_a_bad_announcement_is_refused_by_its_pointer(
        self, service: Service, worker: EnrolledWorker, field: str, value: object
    ) -> None:
        found = problem(announce(worker.http, **{field: value}), 422, "request_invalid")
        assert [error["pointer"] for error in found["errors"]] == [f"/{field}"]
        assert count(Upload) == 0

    def test_more_than_the_limit_is_refused(self, service: Service, worker: EnrolledWorker) -> None:
        problem(announce(worker.http, size_bytes=64 * 1024**3 + 1), 413, "artifact_too_large")
        assert count(Upload) == 0

    def test_a_viewer_uploads_nothing(self, service: Service, bank: Organization) -> None:
        problem(announce(bank.viewer), 403, "role_too_small")
        assert created(announce(bank.operator))["state"] == "open"

    def test_assembly_whose_message_was_lost_is_woken_again(
        self, small_chunks: None, service: Service, worker: EnrolledWorker
    ) -> None:
        answer = upload(worker.http, CONTENT, DIGEST)
        tasks.resume()
        assert queued(nudge.ASSEMBLE) == [[answer["upload_id"]]] * 2

    def test_assembly_in_somebodys_hands_is_left_to_it(
        self, small_chunks: None, service: Service, worker: EnrolledWorker
    ) -> None:
        upload_id = upload(worker.http, CONTENT, DIGEST)["upload_id"]
        with writing() as session:
            session.get_one(Upload, upload_id).claimed_until = utcnow() + timedelta(seconds=5)
        tasks.assemble(upload_id)
        tasks.resume()
        assert worker.http.get(f"/v1/artifacts/uploads/{upload_id}").json()["state"] == "assembling"
        assert len(queued(nudge.ASSEMBLE)) == 1
        with writing() as session:
            session.get_one(Upload, upload_id).claimed_until = utcnow() - timedelta(seconds=5)
        tasks.assemble(upload_id)
        assert worker.http.get(f"/v1/artifacts/uploads/{upload_id}").json()["state"] == "complete"


class TestDownload:
    @pytest.fixture
    def path(self, data_folder: Path, worker: EnrolledWorker, tmp_path: Path) -> str:
        """Of an artifact that the worker may read."""
        recorded(tmp_path)
        with writing() as session:
            artifacts.grant(session, DIGEST, worker.id)
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

    @pytest.mark.parametrize("text", ["bytes=5-2", "bytes=0-1,5-6", "lines=1-2", "bytes=-", "nonsense"])
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
                artifacts.grant(session, DIGEST, worker.id, now + timedelta(seconds=seconds))
            assert worker.http.get(f"/v1/artifacts/{DIGEST}").status_code == status

    def test_a_right_is_never_shortened(self, worker: EnrolledWorker, path: str) -> None:
        with writing() as session:
            artifacts.grant(session, DIGEST, worker.id, utcnow() - timedelta(seconds=1))
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
        store.drop(stored.digest)

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
            artifacts.grant(session, freed.digest, "wkr_1")
            artifacts.release(session, "rnd_2")
        assert artifacts.collect(self.later(DAY_SECONDS - 60)) == 0
        assert artifacts.collect(self.later(DAY_SECONDS + 60)) == len(b"freed")
        assert (store.size_of(kept.digest), store.size_of(freed.digest)) == (4, None)
        assert (count(Artifact), count(Grant)) == (1, 0)

    def test_what_was_never_recorded_goes_after_a_day(self, data_folder: Path, tmp_path: Path) -> None:
        stored = put_file(tmp_path)
        artifacts.collect(self.later(DAY_SECONDS - 60))
        assert store.size_of(stored.digest) is not None
        artifacts.collect(self.later(DAY_SECONDS + 60))
        assert store.size_of(stored.digest) is None

    def test_an_upload_that_was_given_up_goes_with_its_chunks(self, service: Service, worker: EnrolledWorker) -> None:
        upload_id = created(announce(worker.http))["upload_id"]
        worker.http.put(f"/v1/artifacts/uploads/{upload_id}/chunks/0", content=CONTENT)
        artifacts.collect(self.later(7 * DAY_SECONDS - 60))
        assert (count(Upload), store.chunks_present(upload_id)) == (1, (0,))
        artifacts.collect(self.later(7 * DAY_SECONDS + 60))
        assert (count(Upload), store.chunks_present(upload_id)) == (0, ())

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
