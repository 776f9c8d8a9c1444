"""Configuration of uvicorn, with time limits for receiving requests.

uvicorn waits for the rest of a request without limit and has no setting for one. Its protocol class has the callbacks
to add a limit. Sending responses is unchanged.
"""

import asyncio
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from coordinator.settings import get_settings

LEAST_BYTES = 16_384
GRACEFUL_SECONDS = 2
# Longer than clients keep an idle connection (worker agents: 15 s), so that none is closed just as it is reused.
KEEP_ALIVE_SECONDS = 20


class TimedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a timer that closes the connection of a caller who sends too slowly.

    The head of a request must arrive within `request_seconds` of the start of the connection, or of its own first
    byte. Every `request_seconds` must bring `LEAST_BYTES` of its body, or the rest. A slow upload that makes progress
    is not interrupted.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._in_body = False
        self._body_bytes = 0  # since the timer was set

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._in_body:  # any data ends uvicorn's timer for idle connections
            self._begin_head()
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_head()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_body = True
        self._set_timer()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_body = False
        self._end_timer()

    def _begin_head(self) -> None:
        if self._timer is None:
            self._set_timer()

    def _set_timer(self) -> None:
        self._end_timer()
        self._body_bytes = 0
        self._timer = self.loop.call_later(get_settings().request_seconds, self._time_is_up)

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_is_up(self) -> None:
        if self._is_excused():
            self._set_timer()
        else:
            self.transport.close()

    def _is_excused(self) -> bool:
        """Whether the caller sent enough, or waits for the server: for a response, or for 100 Continue."""
        if not self._in_body:
            return self.cycle is not None and not self.cycle.response_complete
        waits = self.flow.read_paused or self.cycle.waiting_for_100_continue
        return waits or self._body_bytes >= LEAST_BYTES


def server_config(application: FastAPI, host: str = "127.0.0.1", port: int = 0) -> uvicorn.Config:
    """uvicorn's configuration for the coordinator."""
    return uvicorn.Config(
        application, host, port, http=TimedProtocol, log_config=None, access_log=False, ws="none",
        timeout_graceful_shutdown=GRACEFUL_SECONDS, timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )  # fmt: skip
