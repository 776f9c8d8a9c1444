"""A time limit for a whole answer. httpx has one for each piece of it, which a byte a minute never passes."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ssl import SSLContext
from typing import Any

import httpcore
import httpx

_thread = threading.local()


class _Limit:
    """Begins to run with the first read, when the request has been sent: uploading may take its time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: float | None = None

    def left_seconds(self) -> float:
        if self._until is None:
            self._until = time.monotonic() + self._seconds
        return self._until - time.monotonic()


@contextmanager
def response_deadline(seconds: float | None) -> Iterator[None]:
    """What this thread reads inside the block ends so many seconds after its first read, else httpx.ReadTimeout."""
    before = getattr(_thread, "limit", None)
    _thread.limit = None if seconds is None else _Limit(seconds)
    try:
        yield
    finally:
        _thread.limit = before


def keep_deadlines(client: httpx.Client) -> None:
    """Make all connections of the client, those through proxies too, keep to `response_deadline`."""
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx.HTTPTransport):
            # httpx takes no network backend of its caller's; httpcore, which it stands on, does.
            transport._pool._network_backend = _Backend(transport._pool._network_backend)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, backend: httpcore.NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(self, *place: Any, **options: Any) -> httpcore.NetworkStream:
        return _Stream(self._backend.connect_tcp(*place, **options))


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        limit = getattr(_thread, "limit", None)
        if limit is None:
            return self._stream.read(max_bytes, timeout)
        left_seconds = limit.left_seconds()
        if left_seconds <= 0:
            raise httpcore.ReadTimeout("the whole answer took too long")
        return self._stream.read(max_bytes, left_seconds if timeout is None else min(timeout, left_seconds))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
