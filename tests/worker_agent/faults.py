"""Faults in a call of the worker API, each once: another response, a broken one, or none."""

import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from fastapi import Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    from tests.worker_agent.recording_coordinator import RecordingCoordinator


@dataclass
class Fault:
    """What goes wrong once: an answer (`page`: not the coordinator's), one cut off after so many bytes, one lost.

    `content`: the bytes of the answer, which is a problem document otherwise.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    content: bytes | None = None
    cut_after_bytes: int | None = None
    lose_answer: bool = False
    page: bool = False


class Broken(Exception):
    """The connection is broken off."""


class Faulty:
    """Records, tells the time, and breaks what is to break."""

    def __init__(self, app: ASGIApp, coordinator: "RecordingCoordinator") -> None:
        self.app = app
        self.coordinator = coordinator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = f"{scope['method']} {scope['path']}"
        fault = self.coordinator.take_fault(call)

        async def timed(message: MutableMapping[str, Any]) -> None:
            if fault is not None and fault.lose_answer:
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
                raise Broken
            if message["type"] == "http.response.start":
                date = formatdate(time.time() + self.coordinator.clock_offset_seconds, usegmt=True)
                message["headers"] = [*message["headers"], (b"date", date.encode())]
            body = message.get("body", b"")
            if fault is not None and fault.cut_after_bytes is not None and body:
                await send({"type": "http.response.body", "body": body[: fault.cut_after_bytes], "more_body": True})
                raise Broken
            await send(message)

        app = self.app
        if fault is not None and fault.status is not None:
            self.coordinator.calls.append(call)
            self.coordinator.bodies.append(None)
            app = problem(fault.status, headers=fault.headers, **fault.body)
            if fault.content is not None:
                app = Response(fault.content, fault.status, fault.headers)
            if fault.page:
                app = PlainTextResponse("<html>no such page</html>", fault.status)
        await app(scope, receive, timed)


def problem(status: int, headers: dict[str, str] | None = None, **fields: Any) -> JSONResponse:
    """A problem document."""
    body = {"type": "about:blank", "title": "no", "status": status, **fields}
    return JSONResponse(body, status, headers, "application/problem+json")
