"""Callers that send slowly, against a real uvicorn with short time limits."""

import hashlib
import selectors
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import pytest

from coordinator.web.connections import LEAST_BYTES
from tests.support.service import Bearer, Service, created, forget_settings, serving

PATIENCE_SECONDS = 0.8
SOON_SECONDS = 10.0
MANY = 200
HEAD = b"POST /v1/workers/enroll HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.fixture
def service(data_folder: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("FEDLOOM_REQUEST_SECONDS", str(PATIENCE_SECONDS))
    forget_settings()
    with serving() as service:
        yield service


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def connected(stack: ExitStack, service: Service, sent: bytes) -> socket.socket:
    address = urlsplit(service.url)
    connection = stack.enter_context(socket.create_connection((str(address.hostname), address.port), SOON_SECONDS))
    connection.sendall(sent)
    return connection


def seconds_until_closed(drips: Mapping[socket.socket, bytes]) -> float:
    """Of the last of these connections, each of which is sent its drip now and then."""
    start = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for connection, drip in drips.items():
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ, drip)
        while selector.get_map():
            assert time.monotonic() - start < SOON_SECONDS, f"{len(selector.get_map())} are open"
            for key, _ in selector.select(0.1):
                if _ended(key.fileobj):  # type: ignore[arg-type]
                    selector.unregister(key.fileobj)
            for key in list(selector.get_map().values()):
                _send(key.fileobj, key.data)  # type: ignore[arg-type]
    return time.monotonic() - start


def _ended(connection: socket.socket) -> bool:
    try:
        return not connection.recv(65536)
    except ConnectionResetError:
        return True


def _send(connection: socket.socket, sent: bytes) -> None:
    with suppress(OSError):
        connection.send(sent)


def test_half_heads_and_half_bodies_are_closed_and_others_answered_meanwhile(
    service: Service, stack: ExitStack
) -> None:
    half_body = HEAD + b"Content-Length: 1000\r\n\r\n{"
    connections = [connected(stack, service, sent) for sent in (HEAD, half_body) for _ in range(MANY)]
    for _ in range(5):
        assert service.anonymous.get("/healthz").status_code == 200
    assert seconds_until_closed(dict.fromkeys(connections, b"")) < SOON_SECONDS


@pytest.mark.parametrize("drips", [False, True], ids=["stops", "drips"])
def test_whoever_does_not_send_on_is_closed_in_time(service: Service, stack: ExitStack, drips: bool) -> None:
    cases = [
        (HEAD + b"X-Long: ", b"x"),
        (HEAD + b"Content-Length: 100000\r\n\r\n", b" "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", b"1\r\n \r\n"),
        (b"POST /v1/federations HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{", b" "),  # refused already
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /he", b"x"),
    ]
    # Nothing at all; and line breaks between requests, which would keep an idle connection open.
    cases.append((b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", b"\r\n") if drips else (b"", b""))
    slow = {connected(stack, service, sent): drip if drips else b"" for sent, drip in cases}
    assert seconds_until_closed(slow) < 4 * PATIENCE_SECONDS


def test_a_slow_upload_that_goes_on_is_not_cut_off(service: Service, stack: ExitStack) -> None:
    owner = service.new_organization("clinic").owner
    content = bytes(14 * LEAST_BYTES)
    announced = {"size_bytes": len(content), "digest": "sha256:" + hashlib.sha256(content).hexdigest()}
    upload = created(owner.post("/v1/artifacts/uploads", json=announced))["upload_id"]
    assert isinstance(owner.auth, Bearer)
    head = (
        f"PUT /v1/artifacts/uploads/{upload}/chunks/0 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        f"Authorization: Bearer {owner.auth.token}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    start = time.monotonic()
    connection = connected(stack, service, head.encode())
    for begin in range(0, len(content), LEAST_BYTES):
        connection.sendall(content[begin : begin + LEAST_BYTES])
        time.sleep(PATIENCE_SECONDS / 4)
    assert time.monotonic() - start > 3 * PATIENCE_SECONDS
    assert connection.recv(65536).startswith(b"HTTP/1.1 204 ")


def test_who_waits_for_an_answer_is_not_closed(service: Service) -> None:
    organization = service.new_organization("clinic")
    worker = service.new_worker(organization, "gpu")
    body = {"boot_id": worker.boot_id, "wait_seconds": 3 * PATIENCE_SECONDS}
    assert worker.http.post("/v1/jobs/lease", json=body).status_code == 204
    assert worker.heartbeat().status_code == 200


def test_a_connection_is_kept_between_requests(service: Service, stack: ExitStack) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    connection = connected(stack, service, request)
    assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    time.sleep(2 * PATIENCE_SECONDS)
    connection.sendall(request)
    assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
