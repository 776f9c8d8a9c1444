"""What PostgreSQL tells of commits (LISTEN), heard on the event loop: it spares asking again and again.

Nothing depends on it. Where nothing is told (SQLite, a pooler that passes no notices on, a lost connection), whoever
waits is sent to look every few milliseconds.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from anyio import to_thread

_FIRST_POLLED_SECONDS = 1.0
_UNTOLD_SECONDS = 1.0
_DISTRUST_SECONDS = 60.0
_log = structlog.get_logger(__name__)


class Notices:
    """For one event loop. `connect()` gives a connection that listens (psycopg), or None where nothing is told.

    `hear` is called with the text of each notice. It connects once somebody has waited for a second: who asks and
    goes needs no connection.
    """

    def __init__(self, connect: Callable[[], Any | None], hear: Callable[[str], None], poll_seconds: float) -> None:
        self._connect, self._hear, self._poll_seconds = connect, hear, poll_seconds
        self._connection: Any | None = None
        self._file = -1  # its descriptor, which a lost connection does not tell any more
        self._attempt: object | None = None
        self._handing_over = threading.Lock()
        self._polled_until: float | None = None
        self._woken = asyncio.Event()

    @property
    def listening(self) -> bool:
        """Whether what is committed from now on will be told, as far as one knows."""
        return self._connection is not None

    async def wait(self) -> None:
        """Until it is time to look: soon, or while it listens, every second."""
        now = asyncio.get_running_loop().time
        if self._polled_until is None:
            self._polled_until = now() + _FIRST_POLLED_SECONDS
        if now() < self._polled_until:
            await asyncio.sleep(self._poll_seconds)
        elif self._connection is None:
            await self._listen()  # and look at once: what was committed before was not told
        else:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), _UNTOLD_SECONDS)
            self._woken.clear()

    def wake(self) -> None:
        """Ends a `wait` that is under way."""
        self._woken.set()

    def distrust(self) -> None:
        """Something came to light that was not told: better to look often for a while."""
        _log.warning("notices_missed", polled_seconds=_DISTRUST_SECONDS)
        self._poll_for(_DISTRUST_SECONDS)

    def close(self) -> None:
        """Listens no longer; the next `wait` begins anew."""
        self._polled_until = None
        with self._handing_over:
            connection, self._connection, self._attempt = self._connection, None, None
        file, self._file = self._file, -1
        if file >= 0:
            asyncio.get_running_loop().remove_reader(file)
        if connection is not None:
            connection.close()

    def _poll_for(self, seconds: float) -> None:
        self.close()
        self._polled_until = asyncio.get_running_loop().time() + seconds

    async def _listen(self) -> None:
        attempt = self._attempt = object()

        def connect() -> None:  # a thread goes on when whoever waits for it is stopped
            made = self._connect()
            with self._handing_over:
                if self._attempt is attempt:
                    self._connection = made
                elif made is not None:
                    made.close()

        try:
            await to_thread.run_sync(connect)
        except Exception as error:
            _log.warning("notices_not_heard", reason=repr(error), polled_seconds=_DISTRUST_SECONDS)
            self._poll_for(_DISTRUST_SECONDS)
            return
        if self._connection is None:
            self._polled_until = float("inf")
            return
        self._file = self._connection.fileno()
        asyncio.get_running_loop().add_reader(self._file, self._read)

    def _read(self) -> None:
        if self._connection is None:
            return
        server = self._connection.pgconn
        try:
            server.consume_input()
            while (notice := server.notifies()) is not None:
                self._hear(notice.extra.decode())
        except Exception as error:
            _log.warning("notices_lost", reason=repr(error))
            self._poll_for(_FIRST_POLLED_SECONDS)
            self._woken.set()
