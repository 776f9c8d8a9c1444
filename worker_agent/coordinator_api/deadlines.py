"""Time limit for a whole response.

httpx limits the time for each read only, and a server that sends a byte a minute never exceeds that limit.
"""

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
    """Limit that starts with the first read, after the request was sent, so that an upload may take long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: float | None = None

    def left_seconds(self) -> float:
        if self._until is None:
            self._until = time.monotonic() + self._seconds
        return self._until - time.monotonic()


@contextmanager
def response_deadline(seconds: float | None) -> Iterator[None]:
    """Limit the reads of this thread inside the block to `seconds` from the first one. Raises httpx.ReadTimeout."""
    before = getattr(_thread, "limit", None)
    _thread.limit = None if seconds is None else _Limit(seconds)
    try:
        yield
    finally:
        _thread.limit = before


def keep_deadlines(client: httpx.Client) -> None:
    """Make all connections of the client, including those through proxies, obey `response_deadline`."""
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx.HTTPTransport):
            # httpx accepts no network backend from its caller; httpcore underneath does.
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
            raise httpcore.ReadTimeout("the whole response took too long")
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
