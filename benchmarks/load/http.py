"""A cheap HTTP client, which sends from a file and discards received bytes, over one connection at a time."""

import http.client
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_BUFFER_BYTES = 1024**2
_TIMEOUT_SECONDS = 600.0


class Caller:
    """Requests to one server, each over a new connection."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self._at, self._headers = urlsplit(url).netloc, dict(headers or {})
        self._connection = http.client.HTTPConnection(self._at, timeout=_TIMEOUT_SECONDS)
        self._buffer = bytearray(_BUFFER_BYTES)

    def request_json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send JSON and return the JSON of the response."""
        headers = {**self._headers, "Content-Type": "application/json"}
        self._fresh().request(method, path, None if body is None else json.dumps(body), headers)
        response = self._connection.getresponse()
        text = response.read()
        self._check(method, path, response, text)
        document: dict[str, Any] = json.loads(text)
        return document

    def put(self, path: str, source: Path, start: int, size_bytes: int) -> None:
        """Send a part of the file as the body."""
        connection = self._fresh()
        connection.putrequest("PUT", path)
        for name, value in {**self._headers, "Content-Length": str(size_bytes)}.items():
            connection.putheader(name, value)
        connection.endheaders()
        with source.open("rb") as file:
            connection.sock.sendfile(file, start, size_bytes)
        response = connection.getresponse()
        self._check("PUT", path, response, response.read())

    def get(self, path: str) -> int:
        """Receive and discard the body of the response. Returns its size in bytes."""
        self._fresh().request("GET", path, headers={**self._headers, "Accept-Encoding": "identity"})
        response = self._connection.getresponse()
        self._check("GET", path, response, b"")
        size_bytes = 0
        while count := response.readinto(self._buffer):
            size_bytes += count
        return size_bytes

    def wait(self, path: str, seconds: float = 60.0) -> None:
        """Wait until the server responds."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self._fresh().request("GET", path)
                self._connection.getresponse().read()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def _fresh(self) -> http.client.HTTPConnection:
        """Reconnect, as the server may have closed the old connection while the caller was busy elsewhere."""
        self._connection.close()
        self._connection.connect()
        return self._connection

    def _check(self, method: str, path: str, response: http.client.HTTPResponse, text: bytes) -> None:
        if response.status >= 400:
            raise SystemExit(f"{method} {path}: {response.status} {text[:500]!r}")
