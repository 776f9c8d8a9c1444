"""Hostile responses: they take no more disk, memory and time of the agent than was announced."""

import functools
import gzip
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import pytest

from federated.atomic_files import UNFINISHED_SUFFIX
from federated.protocol import ArtifactReference
from tests.worker_agent.hostile_coordinator import Reply, chunked, dripping, head, hostile, whole
from worker_agent.coordinator_api import downloads
from worker_agent.coordinator_api.client import CoordinatorClient
from worker_agent.coordinator_api.connection import Connection, open_http
from worker_agent.coordinator_api.downloads import DAMAGED_TIMES, TRUSTED_TIMES
from worker_agent.coordinator_api.responses import MAX_RESPONSE_BYTES, MAX_VALUES
from worker_agent.errors import AgentError, CoordinatorAway, CorruptBytes, NotUnderstood, OutOfTime, is_disk_full
from worker_agent.settings import AgentSettings

MEGABYTE = 1024**2
GROWTH_BYTES = 64 * MEGABYTE
"""What the libraries themselves may take with their first request."""
CONTENT = os.urandom(100)
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
REFERENCE = ArtifactReference(digest=DIGEST, size_bytes=100)
MORE_BYTES = 192 * MEGABYTE
"""More than any bound here."""
NESTED = b'{"server_time":' + b"[" * 8 * MEGABYTE
MANY = b'{"heartbeat_seconds":1,"more":[' + b"[]," * (5 * MEGABYTE) + b"[]]}"
MANY_IN_A_LEASE = b'{"job_id":"job_1","kind":"train","settings":{"of":[' + b"[]," * (5 * MEGABYTE) + b"[]]}}"
LARGE_NUMBER = b'{"server_time":' + b"9" * 8 * MEGABYTE + b',"heartbeat_seconds":1}'


class Measured(Protocol):
    """What a call came to: error, text, bytes on disk, growth of the process that made it."""

    def __call__(self, url: str, call: str, folder: Path, size_bytes: int = 100) -> dict[str, Any]: ...


@pytest.fixture(scope="module")
def measured() -> Iterator[Measured]:
    """Calls of an agent, in a process of its own."""
    command = [sys.executable, "-m", "tests.worker_agent.measured_call"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(url: str, call: str, folder: Path, size_bytes: int = 100) -> dict[str, Any]:
            print(json.dumps([url, call, str(folder), size_bytes]), file=process.stdin, flush=True)
            found: dict[str, Any] = json.loads(process.stdout.readline())
            return found

        yield ask
        process.stdin.close()


@functools.cache
def packed(name: str) -> bytes:
    """More zeros than the agent may take, in few bytes."""
    return gzip.compress(bytes(MORE_BYTES), 1) if name == "gzip" else zlib.compress(bytes(MORE_BYTES), 1)


def json_of(body: bytes, **headers: object) -> Reply:
    return whole("200 OK", body, Content_Type="application/json", **headers)


class TestADownload:
    @pytest.mark.parametrize(
        ("reply", "error"),
        [
            (whole("200 OK", bytes(101)), "CorruptBytes"),
            (chunked("200 OK", MORE_BYTES), "CorruptBytes"),
            (whole("206 Partial Content", bytes(100), Content_Range="bytes 0-99/100"), "CorruptBytes"),
            (whole("204 No Content", b""), "NotUnderstood"),
            (chunked("404 Not Found", MORE_BYTES), "NoCoordinator"),
            (chunked("404 Not Found", MORE_BYTES, Content_Type="application/problem+json"), "NoCoordinator"),
            (chunked("302 Found", MORE_BYTES, Location="http://192.0.2.1/"), "NoCoordinator"),
        ],
        ids=["a byte more", "without end", "a range unasked for", "nothing", "an error", "a problem", "a redirect"],
    )
    def test_takes_no_more_than_announced(self, reply: Reply, error: str, tmp_path: Path, measured: Measured) -> None:
        with hostile(reply) as server:
            found = measured(server.url, "download", tmp_path)
        assert found["error"] == error, found
        assert found["on_disk"] <= 100
        assert found["grown"] < GROWTH_BYTES
        assert len(server.heads) <= 5

    @pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
    @pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
    def test_unpacks_nothing(self, encoding: str, status: str, tmp_path: Path, measured: Measured) -> None:
        body = packed("gzip" if "gzip" in encoding else "deflate")
        with hostile(whole(status, body, Content_Encoding=encoding)) as server:
            found = measured(server.url, "download", tmp_path, len(body))
        assert found["error"] in {"NotUnderstood", "NoCoordinator"}, found
        assert found["on_disk"] == 0
        assert found["grown"] < GROWTH_BYTES
        assert all("accept-encoding: identity" in asked.lower() for asked in server.heads)

    @pytest.mark.parametrize(
        "told", ["bytes 0-99/100", "bytes 41-99/100", "bytes 40-98/100", "bytes 40-99/1000", "", "x"]
    )
    def test_begins_anew_after_another_part_than_it_asked_for(self, told: str, tmp_path: Path) -> None:
        def reply(asked: str, connection: socket.socket) -> None:
            if "range: bytes=40-" in asked.lower():
                whole("206 Partial Content", CONTENT[40:], Content_Range=told)(asked, connection)
            else:
                whole("200 OK", CONTENT)(asked, connection)

        (tmp_path / (DIGEST.removeprefix("sha256:") + UNFINISHED_SUFFIX)).write_bytes(CONTENT[:40])
        with hostile(reply) as server, open_http(AgentSettings(), server.url) as http:
            path = CoordinatorClient(http, None).cache(tmp_path).fetch(REFERENCE).path
        assert path.read_bytes() == CONTENT
        assert ["range:" in asked.lower() for asked in server.heads] == [True, False]

    def test_throws_away_a_leftover_that_is_longer_than_announced(self, tmp_path: Path) -> None:
        (tmp_path / (DIGEST.removeprefix("sha256:") + UNFINISHED_SUFFIX)).write_bytes(bytes(1000))
        with hostile(whole("200 OK", CONTENT)) as server, open_http(AgentSettings(), server.url) as http:
            path = CoordinatorClient(http, None).cache(tmp_path).fetch(REFERENCE).path
        assert path.read_bytes() == CONTENT
        assert "range:" not in server.heads[0].lower()

    def test_is_not_made_for_ever_when_other_bytes_come(self, tmp_path: Path) -> None:
        with hostile(whole("200 OK", bytes(100))) as server, open_http(AgentSettings(), server.url) as http:
            cache = CoordinatorClient(http, None).cache(tmp_path)
            for _ in range(TRUSTED_TIMES):
                with pytest.raises(CorruptBytes, match="different bytes"):
                    cache.fetch(REFERENCE)
            assert len(server.heads) == TRUSTED_TIMES * DAMAGED_TIMES
            with pytest.raises(CorruptBytes, match="has to wait"):
                cache.fetch(REFERENCE)
            assert len(server.heads) == TRUSTED_TIMES * DAMAGED_TIMES

    def test_is_not_made_for_ever_when_it_always_begins_anew_and_breaks_off(self, tmp_path: Path) -> None:
        def reply(asked: str, connection: socket.socket) -> None:
            connection.sendall(head("200 OK", Content_Length=100) + b"1")

        with hostile(reply) as server, open_http(AgentSettings(), server.url) as http:
            with pytest.raises(CoordinatorAway):
                CoordinatorClient(http, None).cache(tmp_path).fetch(REFERENCE)
        assert len(server.heads) <= 10

    def test_ends_when_its_time_is_over_however_slowly_it_comes(self, tmp_path: Path) -> None:
        ending = Event()
        with hostile(dripping(ending, head("200 OK", Content_Length=100_000), b"x")) as server:
            with open_http(AgentSettings(), server.url) as http:
                large = ArtifactReference(digest=DIGEST, size_bytes=100_000)
                with pytest.raises((OutOfTime, CoordinatorAway)):
                    CoordinatorClient(http, None).cache(tmp_path).fetch(large, until=time.monotonic() + 1)
            ending.set()
        assert len(server.heads) <= 2

    def test_is_not_begun_without_room_on_the_disk(self, tmp_path: Path) -> None:
        free_bytes = shutil.disk_usage(tmp_path).free
        with hostile(whole("200 OK", CONTENT)) as server, open_http(AgentSettings(), server.url) as http:
            cache = CoordinatorClient(http, None).cache(tmp_path)
            for size_bytes in (free_bytes, 10**18):
                with pytest.raises(OSError, match="no space for artifact") as full:
                    cache.fetch(ArtifactReference(digest=DIGEST, size_bytes=size_bytes))
                assert is_disk_full(full.value)
        assert server.connections == 0
        assert downloads.RESERVE_BYTES == 256 * MEGABYTE


class TestAnyOtherAnswer:
    @pytest.mark.parametrize("call", ["heartbeat", "chunk", "store"])
    @pytest.mark.parametrize("status", ["200 OK", "302 Found", "404 Not Found", "503 Service Unavailable"])
    def test_is_read_up_to_a_bound(self, call: str, status: str, tmp_path: Path, measured: Measured) -> None:
        with hostile(chunked(status, MORE_BYTES, Content_Type="application/problem+json")) as server:
            found = measured(server.url, call, tmp_path)
        assert found["grown"] < GROWTH_BYTES + 3 * MAX_RESPONSE_BYTES, found
        assert found["error"] in {"NotUnderstood", "NoCoordinator", "CoordinatorAway", "StoreAway"}, found

    @pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
    @pytest.mark.parametrize("status", ["200 OK", "401 Unauthorized", "500 Internal Server Error"])
    def test_is_not_unpacked(self, encoding: str, status: str, tmp_path: Path, measured: Measured) -> None:
        body = packed(encoding)
        headers = {"Content_Type": "application/problem+json", "Date": "Mon, 01 Jan 2001 00:00:00 GMT"}
        with hostile(whole(status, body, Content_Encoding=encoding, **headers)) as server:
            found = measured(server.url, "heartbeat", tmp_path)
        assert found["grown"] < GROWTH_BYTES, found
        assert found["error"] in {"NotUnderstood", "NoCoordinator", "CoordinatorAway"}, found

    @pytest.mark.parametrize("body", [NESTED, MANY, LARGE_NUMBER], ids=["nested", "many", "a large number"])
    def test_is_no_document_that_hurts(self, body: bytes, tmp_path: Path, measured: Measured) -> None:
        with hostile(json_of(body)) as server:
            found = measured(server.url, "heartbeat", tmp_path)
        assert found["error"] == "NotUnderstood", found["error"]
        assert found["grown"] < GROWTH_BYTES + 3 * MAX_RESPONSE_BYTES, found["grown"]
        assert len(found["text"]) < 2_000

    def test_is_no_lease_that_hurts(self, tmp_path: Path, measured: Measured) -> None:
        with hostile(json_of(MANY_IN_A_LEASE)) as server:
            found = measured(server.url, "lease", tmp_path)
        assert found["error"] == "NotUnderstood", found["error"]
        assert found["grown"] < GROWTH_BYTES + 3 * MAX_RESPONSE_BYTES, found["grown"]

    def test_with_as_many_wrong_values_as_may_be_is_named_in_few_words(
        self, tmp_path: Path, measured: Measured
    ) -> None:
        body = b'{"server_time":[' + b",".join([b"{}"] * (MAX_VALUES // 2 - 10)) + b"]}"
        with hostile(json_of(body)) as server:
            found = measured(server.url, "heartbeat", tmp_path)
        assert found["error"] == "NotUnderstood"
        assert len(found["text"]) < 2_000

    @pytest.mark.parametrize(
        ("start", "drop"),
        [
            (b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n"),
            (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
            (head("200 OK", Content_Length=1_000_000), b" "),
            (head("200 OK", Transfer_Encoding="chunked"), b"1\r\n \r\n"),
            (head("404 Not Found", Content_Length=1_000_000), b" "),
        ],
        ids=["headers", "hints", "body", "chunks", "error"],
    )
    def test_that_comes_in_drops_without_end_ends(self, start: bytes, drop: bytes) -> None:
        ending = Event()
        with hostile(dripping(ending, start, drop)) as server:
            with open_http(AgentSettings(request_timeout_seconds=1), server.url) as http:
                with pytest.raises(CoordinatorAway, match="ReadTimeout"):
                    Connection(http, None).once("GET", "/healthz")
            ending.set()

    def test_that_is_a_redirect_is_named_as_one_and_not_followed(self) -> None:
        with hostile(whole("200 OK", b"{}")) as elsewhere:
            told = whole("302 Found", b"", Location=f"{elsewhere.url}/login?secret=1")
            with hostile(told) as server, open_http(AgentSettings(), server.url) as http:
                for method in ("GET", "POST", "PUT"):
                    with pytest.raises(CoordinatorAway, match="was redirected \\(302\\) to http://127") as away:
                        Connection(http, None).once(method, "/v1/jobs/lease")
                    assert "secret" not in str(away.value)
        assert elsewhere.connections == 0

    def test_leaves_no_cookie(self) -> None:
        with hostile(whole("200 OK", b"{}", Set_Cookie="a=" + "b" * 4000)) as server:
            with open_http(AgentSettings(), server.url) as http:
                for _ in range(2):
                    Connection(http, None).once("GET", "/healthz")
        assert "cookie" not in server.heads[1].lower()

    def test_that_asks_to_wait_for_ever_is_not_obeyed(self) -> None:
        for told in ("inf", "nan", "1e300"):
            with hostile(whole("503 Service Unavailable", b"", Retry_After=told)) as server:
                with open_http(AgentSettings(), server.url) as http, pytest.raises(CoordinatorAway) as away:
                    Connection(http, None).once("GET", "/healthz")
            assert away.value.retry_after_seconds is not None
            assert 0 <= away.value.retry_after_seconds <= 3600

    @pytest.mark.parametrize(
        "chunks",
        [{"chunks": 10**12, "chunk_bytes": 1}, {"chunks": 1, "chunk_bytes": 10**12}, {"chunks": 0, "chunk_bytes": 0}],
    )
    def test_that_asks_for_chunks_which_cannot_be_is_refused(self, chunks: dict[str, int], tmp_path: Path) -> None:
        told = {"upload_id": "upl_1", "chunks_present": [], "state": "open", **chunks}
        (source := tmp_path / "update").write_bytes(CONTENT)
        with hostile(json_of(json.dumps(told).encode())) as server, open_http(AgentSettings(), server.url) as http:
            with pytest.raises(NotUnderstood, match="do not make 100 bytes"):
                CoordinatorClient(http, None).upload(source, DIGEST)


def test_no_answer_raises_anything_but_an_error_of_the_agent(tmp_path: Path) -> None:
    beginnings = [b"", b"\0" * 100, b"HTTP/1.1 999 x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
                  b"HTTP/1.1 200 OK\r\nDate: Mon, 01 Jan 0001 00:00:00 -0000\r\nContent-Length: 2\r\n\r\n{}",
                  b"HTTP/1.1 307 x\r\nLocation: http://[::1\r\n\r\n", b"HTTP/1.1 307 x\r\nLocation: //\r\n\r\n",
                  b"HTTP/1.1 200 OK\r\nX: " + b"x" * MEGABYTE]  # fmt: skip
    for beginning in beginnings:
        with hostile(lambda asked, connection, sent=beginning: connection.sendall(sent)) as server:  # type: ignore[misc]
            settings = AgentSettings(hosts=("https://a.example",))
            with open_http(settings, server.url) as http:
                client = CoordinatorClient(http, None, None, settings.hosts)
                with pytest.raises(AgentError):
                    client.who_am_i()
                with pytest.raises(AgentError):
                    client.cache(tmp_path).fetch(REFERENCE)
