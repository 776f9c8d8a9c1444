"""Presigned transfers between agent and store, with the agent's own client and a real S3 server."""

import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from coordinator.artifacts import service as artifacts
from coordinator.artifacts import tasks
from coordinator.db.sessions import writing
from coordinator.queue.wakeups import ASSEMBLE
from coordinator.settings import Settings, get_settings
from federated.protocol import ArtifactReference
from tests.support.queue import take
from tests.support.service import EnrolledWorker, Service, created, forget_settings, serving
from worker_agent.coordinator_api.client import CoordinatorClient
from worker_agent.coordinator_api.connection import open_http
from worker_agent.coordinator_api.identity import Identity, WorkerRecord
from worker_agent.settings import AgentSettings

CHUNK_BYTES = 64 * 1024
CONTENT = random.Random(5).randbytes(5 * CHUNK_BYTES + 7)
DIGEST = "sha256:" + sha256(CONTENT).hexdigest()
ANNOUNCED = {"size_bytes": len(CONTENT), "digest": DIGEST}


@pytest.fixture
def service(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A web process whose agents reach the store themselves."""
    monkeypatch.setenv("FEDLOOM_PRESIGNED_ENDPOINT", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("FEDLOOM_CHUNK_BYTES", str(CHUNK_BYTES))
    forget_settings()
    with serving() as running:
        yield running


@pytest.fixture
def worker(service: Service) -> EnrolledWorker:
    return service.new_worker(service.new_organization("clinic"), "gpu-1")


@contextmanager
def agent(service: Service, worker: EnrolledWorker, *, listed: bool = True) -> Iterator[CoordinatorClient]:
    """The agent's client, as this worker, whose owner listed the store or did not."""
    record = WorkerRecord(
        url=service.url, worker_id=worker.id, organization_id=worker.organization_id,
        organization_name="clinic", name=worker.name,
    )  # fmt: skip
    with open_http(AgentSettings(request_timeout_seconds=10), service.url) as http:
        hosts = get_settings().store_origins if listed else ()
        yield CoordinatorClient(http, Identity(record, worker.identity.private_key), None, hosts)


@contextmanager
def background() -> Iterator[None]:
    """Puts uploads together meanwhile."""
    ending = threading.Event()

    def run() -> None:
        while not ending.wait(0.05):
            while (message := take()) is not None:
                if message[0] == ASSEMBLE:
                    tasks.assemble(*message[1])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


@pytest.mark.engines
class TestAnAgent:
    def test_sends_chunks_to_the_store_and_reads_from_it(
        self, service: Service, worker: EnrolledWorker, tmp_path: Path
    ) -> None:
        source = tmp_path / "update"
        source.write_bytes(CONTENT)
        with agent(service, worker) as client, background():
            stored = client.upload(source, DIGEST)
            with writing() as session:
                artifacts.grant(session, [(DIGEST, worker.id)])
            assert stored == ArtifactReference(digest=DIGEST, size_bytes=len(CONTENT))
            download = client.cache(tmp_path / "cache").fetch(stored)
        assert download.path.read_bytes() == CONTENT
        assert download.transferred_bytes == len(CONTENT)
        told = worker.http.get(f"/v1/artifacts/{DIGEST}")
        assert (told.status_code, told.headers["Cache-Control"]) == (307, "no-store")
        assert told.headers["Location"].startswith(os.environ["AWS_ENDPOINT_URL"])

    def test_goes_on_where_it_stopped(self, service: Service, worker: EnrolledWorker, tmp_path: Path) -> None:
        announced = created(worker.http.post("/v1/artifacts/uploads", json=ANNOUNCED))
        urls = announced["chunk_urls"]
        assert sorted(urls) == ["0", "1", "2", "3", "4", "5"]
        httpx.put(urls["0"], content=CONTENT[:CHUNK_BYTES]).raise_for_status()
        httpx.put(urls["1"], content=b"too little").raise_for_status()
        httpx.put(urls["2"], content=bytes(3 * CHUNK_BYTES)).raise_for_status()
        again = created(worker.http.post("/v1/artifacts/uploads", json=ANNOUNCED))
        assert (again["upload_id"], again["chunks_present"]) == (announced["upload_id"], [0])
        assert sorted(again["chunk_urls"]) == ["1", "2", "3", "4", "5"]
        source = tmp_path / "update"
        source.write_bytes(CONTENT)
        with agent(service, worker) as client, background():
            assert client.upload(source, DIGEST).digest == DIGEST

    @pytest.mark.parametrize("listed", [True, False], ids=["cannot reach", "may not speak to"])
    def test_sends_and_reads_through_the_coordinator_what_store_it(
        self,
        service: Service,
        worker: EnrolledWorker,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        listed: bool,
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as place:
            place.settimeout(0)
            url = f"http://127.0.0.1:{1 if listed else place.getsockname()[1]}"
            monkeypatch.setenv("FEDLOOM_PRESIGNED_ENDPOINT", url)
            forget_settings()
            (source := tmp_path / "update").write_bytes(CONTENT)
            with agent(service, worker, listed=listed) as client, background():
                stored = client.upload(source, DIGEST)
                with writing() as session:
                    artifacts.grant(session, [(DIGEST, worker.id)])
                download = client.cache(tmp_path / "cache").fetch(stored)
            with pytest.raises(BlockingIOError):
                place.accept()
        assert download.path.read_bytes() == CONTENT
        assert "Signature" not in capsys.readouterr().out

    def test_is_told_which_store_it_would_be_sent_to(self, service: Service, worker: EnrolledWorker) -> None:
        with agent(service, worker) as client:
            assert client.who_am_i().store_origins == (os.environ["AWS_ENDPOINT_URL"],)

    def test_gets_any_range_through_the_coordinator(
        self, service: Service, worker: EnrolledWorker, tmp_path: Path
    ) -> None:
        (source := tmp_path / "update").write_bytes(CONTENT)
        with agent(service, worker, listed=False) as client, background():
            client.upload(source, DIGEST)
        with writing() as session:
            artifacts.grant(session, [(DIGEST, worker.id)])
        headers = {"Fedloom-Transfer": "through-coordinator", "Range": "bytes=70000-"}
        answer = worker.http.get(f"/v1/artifacts/{DIGEST}", headers=headers)
        assert (answer.status_code, answer.content) == (206, CONTENT[70000:])
        wrong = worker.http.get(f"/v1/artifacts/{DIGEST}", headers={"Fedloom-Transfer": "by pigeon"})
        assert wrong.status_code == 422


@pytest.mark.engines
def test_one_chunk_goes_through_the_web_process(worker: EnrolledWorker) -> None:
    answer = created(worker.http.post("/v1/artifacts/uploads", json={**ANNOUNCED, "size_bytes": CHUNK_BYTES}))
    assert (answer["chunks"], answer["chunk_urls"]) == (1, {})


@pytest.mark.engines
def test_a_user_gets_the_bytes_from_the_coordinator(service: Service) -> None:
    organization = service.new_organization("clinic")
    upload = created(
        organization.owner.post(
            "/v1/artifacts/uploads", json={"size_bytes": 3, "digest": "sha256:" + sha256(b"abc").hexdigest()}
        )
    )
    organization.owner.put(f"/v1/artifacts/uploads/{upload['upload_id']}/chunks/0", content=b"abc").raise_for_status()
    done = organization.owner.post(f"/v1/artifacts/uploads/{upload['upload_id']}/complete").json()
    with writing() as session:
        artifacts.grant(session, [(done["artifact"]["digest"], organization.id)])
    assert organization.owner.get(f"/v1/artifacts/{done['artifact']['digest']}").content == b"abc"


def test_a_folder_has_no_urls() -> None:
    with pytest.raises(ValidationError, match="presigned_endpoint requires a store_url that begins with s3://"):
        Settings(presigned_endpoint="https://s3.example.org", store_url="file:///srv/store")
