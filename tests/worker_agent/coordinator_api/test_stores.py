"""Transfers through the stores that the node's owner listed, and through the coordinator otherwise."""

import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from federated.protocol import ArtifactReference
from tests.worker_agent.hostile_coordinator import HostileCoordinator, Reply, hostile, whole
from worker_agent.coordinator_api.client import CoordinatorClient
from worker_agent.coordinator_api.connection import open_http
from worker_agent.errors import CoordinatorAway
from worker_agent.origins import Origins, origin_of
from worker_agent.settings import AgentSettings

CONTENT = os.urandom(1000)
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
REFERENCE = ArtifactReference(digest=DIGEST, size_bytes=len(CONTENT))
LISTED = "https://listed.example"


def sending_to(location: str) -> Reply:
    """A coordinator that sends downloads to `location`, unless it is asked to send the bytes itself."""

    def reply(asked: str, connection: socket.socket) -> None:
        if "fedloom-transfer: through-coordinator" in asked.lower():
            whole("200 OK", CONTENT)(asked, connection)
        else:
            whole("307 Temporary Redirect", b"", Location=location)(asked, connection)

    return reply


def fetched(server: HostileCoordinator, folder: Path, *hosts: str) -> bytes:
    """What a download brings to an agent with these `hosts`."""
    with open_http(AgentSettings(request_timeout_seconds=3), server.url) as http:
        return CoordinatorClient(http, None, None, hosts).cache(folder).fetch(REFERENCE).path.read_bytes()


class TestADownload:
    @pytest.mark.parametrize("hosts", [(), (LISTED,)], ids=["none listed", "another listed"])
    @pytest.mark.parametrize(
        "location",
        [
            "http://127.0.0.1:{port}/latest/meta-data",
            "http://localhost:{port}/",
            "//127.0.0.1:{port}/",
            "http://127.0.0.1:{own}@127.0.0.1:{port}/",
            "https://listed.example@127.0.0.1:{port}/",
            "https://listed.example:{port}/",
            "http://listed.example/",
            "HTTP://127.0.0.1:{port}",
            "http://[::1]:{port}/",
            "file:///etc/passwd",
            "ftp://127.0.0.1:{port}/",
            "http://[",
            "http://127.0.0.1:999999/",
            "",
        ],
    )
    def test_sent_to_a_place_that_is_not_listed_comes_through_the_coordinator(
        self, hosts: tuple[str, ...], location: str, tmp_path: Path
    ) -> None:
        with hostile(whole("200 OK", CONTENT)) as elsewhere:
            own, port = "0", elsewhere.url.rpartition(":")[2]
            with hostile(sending_to(location.format(port=port, own=own))) as server:
                assert fetched(server, tmp_path, *hosts) == CONTENT
        assert elsewhere.connections == 0
        assert len(server.heads) == (2 if hosts else 1)

    def test_of_a_coordinator_that_insists_fails_without_a_connection(self, tmp_path: Path) -> None:
        with hostile(whole("200 OK", CONTENT)) as elsewhere:
            with hostile(whole("307 Temporary Redirect", b"", Location=elsewhere.url)) as server:
                for hosts in ((), (LISTED,)):
                    with pytest.raises(CoordinatorAway, match="was redirected"):
                        fetched(server, tmp_path, *hosts)
        assert elsewhere.connections == 0

    def test_says_the_same_whether_anybody_listens_there(self, tmp_path: Path) -> None:
        texts = []
        with socket.create_server(("127.0.0.1", 0)) as silent, hostile(whole("200 OK", CONTENT)) as answering:
            free = f"http://127.0.0.1:{silent.getsockname()[1]}"
            for place in (answering.url, free, "http://127.0.0.1:1"):
                with hostile(whole("307 Temporary Redirect", b"", Location=place)) as server:
                    with pytest.raises(CoordinatorAway) as away:
                        fetched(server, tmp_path)
                texts.append(str(away.value).replace(place, "there").replace(server.url, "here"))
        assert len(set(texts)) == 1

    def test_goes_to_a_listed_store_without_a_token(self, tmp_path: Path) -> None:
        with hostile(whole("200 OK", CONTENT)) as store, hostile(sending_to(f"{store.url}/bucket/key?X=1")) as server:
            assert fetched(server, tmp_path, store.url) == CONTENT
        assert len(server.heads) == len(store.heads) == 1
        assert store.heads[0].startswith("GET /bucket/key?X=1 ")
        assert "authorization" not in store.heads[0].lower()

    @pytest.mark.parametrize(
        "answer",
        [
            whole("500 Internal Server Error", b""),
            whole("403 Forbidden", b"expired"),
            whole("200 OK", CONTENT, Content_Encoding="gzip"),
            whole("200 OK", bytes(1000)),
            whole("200 OK", CONTENT + b"1"),
            whole("204 No Content", b""),
            lambda asked, connection: None,
        ],
        ids=["error", "expired", "packed", "other bytes", "more bytes", "nothing", "no answer"],
    )
    def test_of_a_listed_store_that_does_wrong_comes_through_the_coordinator(
        self, answer: Reply, tmp_path: Path
    ) -> None:
        with hostile(answer) as store, hostile(sending_to(f"{store.url}/key")) as server:
            with open_http(AgentSettings(request_timeout_seconds=3), server.url) as http:
                cache = CoordinatorClient(http, None, None, (store.url,)).cache(tmp_path)
                path = cache.fetch(REFERENCE).path
                assert path.read_bytes() == CONTENT
                asked_before = len(store.heads)
                path.unlink()
                assert cache.fetch(REFERENCE).path.read_bytes() == CONTENT
        assert len(store.heads) == asked_before

    def test_follows_one_redirect_and_no_more(self, tmp_path: Path) -> None:
        with hostile(whole("200 OK", CONTENT)) as elsewhere:
            onward = whole("307 Temporary Redirect", b"", Location=elsewhere.url)
            with hostile(onward) as store, hostile(sending_to(store.url)) as server:
                assert fetched(server, tmp_path, store.url, elsewhere.url) == CONTENT
        assert elsewhere.connections == 0


def taking_uploads(chunk_url: str) -> Reply:
    """A coordinator with one upload of two chunks, that wants both at `chunk_url`."""
    came: set[str] = set()

    def reply(asked: str, connection: socket.socket) -> None:
        method, path, _ = asked.split("\r\n")[0].split(" ")
        if method == "PUT":
            came.add(path.rpartition("/")[2])
        done = path.endswith("/complete")
        answer: dict[str, Any] = {
            "upload_id": "upl_1", "chunk_bytes": 500, "chunks": 2, "chunks_present": [],
            "chunk_urls": {"0": f"{chunk_url}/0", "1": f"{chunk_url}/1"}, "state": "complete" if done else "open",
            "artifact": REFERENCE.model_dump() if done else None,
        }  # fmt: skip
        whole("200 OK", json.dumps(answer).encode(), Content_Type="application/json")(asked, connection)

    return reply


class TestAnUpload:
    @pytest.mark.parametrize("hosts", [(), (LISTED,)], ids=["none listed", "another listed"])
    def test_with_places_that_are_not_listed_goes_to_the_coordinator(
        self, hosts: tuple[str, ...], tmp_path: Path
    ) -> None:
        assert self._puts("200 OK", hosts, tmp_path) == (0, 2)

    def test_goes_to_a_listed_store(self, tmp_path: Path) -> None:
        assert self._puts("200 OK", None, tmp_path) == (2, 0)

    def test_goes_to_the_coordinator_when_a_listed_store_fails(self, tmp_path: Path) -> None:
        assert self._puts("403 Forbidden", None, tmp_path)[1] == 2
        assert self._puts("302 Found", None, tmp_path)[1] == 2

    def _puts(self, status: str, hosts: tuple[str, ...] | None, folder: Path) -> tuple[int, int]:
        """Chunks that came to the store and to the coordinator."""
        (source := folder / "update").write_bytes(CONTENT)
        with hostile(whole(status, b"")) as store, hostile(taking_uploads(f"{store.url}/b")) as server:
            with open_http(AgentSettings(request_timeout_seconds=3), server.url) as http:
                listed = (store.url,) if hosts is None else hosts
                assert CoordinatorClient(http, None, None, listed).upload(source, DIGEST) == REFERENCE
        puts = [asked for asked in server.heads if asked.startswith("PUT")]
        assert hosts is None or store.connections == 0
        assert all("authorization" not in asked.lower() for asked in store.heads)
        return len(store.heads), len(puts)


class TestOrigins:
    @pytest.mark.parametrize(
        ("url", "origin"),
        [
            ("https://Store.Example/a?b", "https://store.example"),
            ("https://store.example:443", "https://store.example"),
            ("http://store.example:8080/", "http://store.example:8080"),
            ("https://[2001:DB8::1]:9000/", "https://[2001:db8::1]:9000"),
            ("https://user:password@store.example/", "https://store.example"),
            ("ftp://store.example", None),
            ("/path", None),
            ("https://", None),
            ("https://store.example:99999", None),
            ("", None),
        ],
    )
    def test_scheme_host_and_port_are_what_counts(self, url: str, origin: str | None) -> None:
        assert origin_of(url) == origin

    @pytest.mark.parametrize(
        ("location", "allowed"),
        [
            ("https://store.example/bucket/key", True),
            ("/elsewhere/here", True),
            ("https://fedloom.example/x", True),
            ("https://store.example:444/", False),
            ("http://fedloom.example/x", False),
            ("http://plain.example/", False),
            ("https://store.example.evil/", False),
            ("https://user@store.example/", False),
        ],
    )
    def test_nothing_goes_from_https_to_http_even_if_it_is_listed(self, location: str, allowed: bool) -> None:
        origins = Origins(httpx.URL("https://fedloom.example"), ["https://store.example", "http://plain.example"])
        assert (origins.target(location) is not None) == allowed

    @pytest.mark.parametrize(
        "host",
        [
            "store.example",
            "https://store.example/path",
            "https://a?b",
            "https://a#b",
            "ftp://a",
            "https://a@b",
            "*",
            "",
        ],
    )
    def test_a_setting_that_is_no_origin_is_refused_by_name(self, host: str) -> None:
        with pytest.raises(ValueError, match="hosts"):
            AgentSettings(hosts=(host,))

    def test_a_setting_is_read_as_it_is_meant(self) -> None:
        settings = AgentSettings(hosts=("https://Store.Example/", "https://s3.example:443", "http://10.0.0.1:443"))
        assert settings.hosts == ("https://store.example", "https://s3.example", "http://10.0.0.1:443")
