"""A web process in a thread of this process: uvicorn, ended without a wait."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from coordinator.web.connections import server_config

_MOMENTS = 10


class _Server(uvicorn.Server):
    """Ends as soon as it is told to; uvicorn's own looks ten times a second, and waits even for no connections."""

    def end(self) -> None:
        """From another thread."""
        self._loop.call_soon_threadsafe(self._told.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Event()
        await super().startup(sockets)

    async def main_loop(self) -> None:
        ticking = asyncio.create_task(super().main_loop())
        await self._told.wait()
        ticking.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for _ in range(_MOMENTS):  # those who asked have hung up: that is only to be noticed
            if not self.server_state.connections and not self.server_state.tasks:
                break
            await asyncio.sleep(0.005)
        else:
            await super().shutdown(sockets)
            return
        for server in self.servers:
            server.close()
        await self.lifespan.shutdown()


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """The app on a real uvicorn in a thread, on a free port, over the settings as they are now; its URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = _Server(server_config(app))
    thread = threading.Thread(target=server.run, args=([listening],), name="uvicorn")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the web process did not start"
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.end()
        thread.join()
        listening.close()
