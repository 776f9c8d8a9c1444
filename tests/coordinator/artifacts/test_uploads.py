"""Uploads in chunks, over HTTP and a folder store."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from coordinator.artifacts import service as artifacts
from coordinator.artifacts import tasks
from coordinator.artifacts.store import chunks, objects
from coordinator.db.sessions import reading, utcnow, writing
from coordinator.models import Artifact, Upload
from coordinator.queue import wakeups
from tests.coordinator.artifacts.stored import CONTENT, DIGEST, announce, count
from tests.support.queue import queued
from tests.support.service import (
    EnrolledWorker,
    Organization,
    Service,
    created,
    forget_settings,
    problem,
    upload,
)


class TestUpload:
    def test_one_chunk_is_complete_at_once(self, service: Service, worker: EnrolledWorker) -> None:
        answer = upload(worker.http, CONTENT, DIGEST)
        assert (answer["state"], answer["artifact"]) == ("complete", {"digest": DIGEST, "size_bytes": len(CONTENT)})
        assert artifacts.whole_file(DIGEST).read_bytes() == CONTENT
        with reading() as session:
            assert artifacts.uploaded_by(session, worker.id, DIGEST) == len(CONTENT)
        assert tuple(sorted(chunks.sizes(answer["upload_id"]))) == ()

    def test_several_chunks_are_put_together_in_the_background(
        self, small_chunks: None, service: Service, worker: EnrolledWorker
    ) -> None:
        answer = upload(worker.http, CONTENT, DIGEST)
        path = f"/v1/artifacts/uploads/{answer['upload_id']}"
        assert (answer["state"], answer["chunks"]) == ("assembling", 3)
        with reading() as session:
            assert artifacts.uploaded_by(session, worker.id, DIGEST) is None
        assert queued(wakeups.ASSEMBLE) == [[answer["upload_id"]]]
        tasks.assemble(answer["upload_id"])
        tasks.assemble(answer["upload_id"])
        assert worker.http.get(path).json()["state"] == "complete"
        assert worker.http.post(f"{path}/complete").json()["state"] == "complete"
        assert artifacts.whole_file(DIGEST).read_bytes() == CONTENT

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
        assert objects.size_of(DIGEST) is None
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

    @pytest.mark.parametrize(("index", "status"), [("1", 404), ("-1", 422), ("one", 422)])
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
        assert artifacts.whole_file(DIGEST).read_bytes() == CONTENT

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
        assert queued(wakeups.ASSEMBLE) == [[answer["upload_id"]]] * 2

    def test_assembly_in_somebodys_hands_is_left_to_it(
        self, small_chunks: None, service: Service, worker: EnrolledWorker
    ) -> None:
        upload_id = upload(worker.http, CONTENT, DIGEST)["upload_id"]
        with writing() as session:
            session.get_one(Upload, upload_id).claimed_until = utcnow() + timedelta(seconds=5)
        tasks.assemble(upload_id)
        tasks.resume()
        assert worker.http.get(f"/v1/artifacts/uploads/{upload_id}").json()["state"] == "assembling"
        assert len(queued(wakeups.ASSEMBLE)) == 1
        with writing() as session:
            session.get_one(Upload, upload_id).claimed_until = utcnow() - timedelta(seconds=5)
        tasks.assemble(upload_id)
        assert worker.http.get(f"/v1/artifacts/uploads/{upload_id}").json()["state"] == "complete"
