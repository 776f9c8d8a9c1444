"""A cheap HTTP client that sends the requests of a worker agent. A thousand real clients would measure themselves.

Connections are kept alive and closed by the worker agent's rule: `worker_agent.coordinator_api.connection.LIMITS`.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

from worker_agent.coordinator_api.connection import LIMITS

_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Response:
    """Status and body of a response."""

    status: int
    body: bytes


class _Line(asyncio.Protocol):
    """A connection with one request at a time."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self.is_open = True
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._pending: asyncio.Future[Response] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes) -> asyncio.Future[Response]:
        self._pending = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._pending

    def close(self) -> None:
        self.is_open = False
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        response = Response(self._parser.get_status_code(), b"".join(self._body))
        self.is_open = self.is_open and self._parser.should_keep_alive()
        self._body, self._parser = [], httptools.HttpResponseParser(self)
        if self._pending is not None and not self._pending.done():
            self._pending.set_result(response)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._pending is not None and not self._pending.done():
            self._pending.set_exception(exc or ConnectionError("the server closed the connection without a response"))


class Wire:
    """Connections of one agent to one server."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 80
        self._idle: list[_Line] = []

    async def post(self, path: str, body: Mapping[str, Any], token: str) -> Response:
        """Send JSON and return the response. Raises OSError, TimeoutError."""
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nAccept: */*\r\n"
            "Accept-Encoding: gzip, deflate\r\n"
            f"Connection: keep-alive\r\nUser-Agent: fedloom-benchmark\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Length: {len(content)}\r\nContent-Type: application/json\r\n\r\n"
        )
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            line = await self._line()
            try:
                response = await line.send(head.encode() + content)
            except BaseException:
                line.close()
                raise
        line.idle_since = asyncio.get_running_loop().time()
        self._idle.append(line)
        return response

    def close(self) -> None:
        """Close the idle connections."""
        for line in self._idle:
            line.close()

    async def _line(self) -> _Line:
        loop = asyncio.get_running_loop()
        while self._idle:
            line = self._idle.pop()
            if line.is_open and loop.time() - line.idle_since < (LIMITS.keepalive_expiry or 0.0):
                return line
            line.close()
        _, line = await loop.create_connection(_Line, self._host, self._port)
        return line
