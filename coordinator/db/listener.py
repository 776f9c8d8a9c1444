"""Listener for PostgreSQL notifications (LISTEN) on the event loop; it replaces frequent polling.

Notifications are an optimization only. Where there are none (SQLite, a pooler that does not forward them, a lost
connection), waiting callers poll every few milliseconds.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from anyio import to_thread

_FIRST_POLLING_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 1.0
_FALLBACK_SECONDS = 60.0
_log = structlog.get_logger(__name__)


class Listener:
    """For one event loop. `connect()` returns a psycopg connection that listens, or None without notifications.

    `on_notify` is called with the text of each notification. The connection is opened only after a second of polling,
    so that short requests need none.
    """

    def __init__(
        self, connect: Callable[[], Any | None], on_notify: Callable[[str], None], poll_seconds: float
    ) -> None:
        self._connect, self._on_notify, self._poll_seconds = connect, on_notify, poll_seconds
        self._connection: Any | None = None
        self._file = -1  # the connection's descriptor, which a lost connection no longer returns
        self._attempt: object | None = None
        self._connection_lock = threading.Lock()
        self._poll_until: float | None = None
        self._wakeup = asyncio.Event()

    @property
    def listening(self) -> bool:
        """Whether commits from now on are expected to be notified."""
        return self._connection is not None

    async def wait(self) -> None:
        """Returns when it is time to look: soon while polling, every second or on `wake` while listening."""
        now = asyncio.get_running_loop().time
        if self._poll_until is None:
            self._poll_until = now() + _FIRST_POLLING_SECONDS
        if now() < self._poll_until:
            await asyncio.sleep(self._poll_seconds)
        elif self._connection is None:
            await self._listen()  # then look at once: earlier commits were not notified
        else:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wakeup.wait(), _LONGEST_WAIT_SECONDS)
            self._wakeup.clear()

    def wake(self) -> None:
        """Ends a `wait` that is in progress."""
        self._wakeup.set()

    def fall_back_to_polling(self) -> None:
        """A notification was missed: poll for the next minute."""
        _log.warning("notices_missed", polled_seconds=_FALLBACK_SECONDS)
        self._poll_for(_FALLBACK_SECONDS)

    def close(self) -> None:
        """Stops listening; the next `wait` starts over."""
        self._poll_until = None
        with self._connection_lock:
            connection, self._connection, self._attempt = self._connection, None, None
        file, self._file = self._file, -1
        if file >= 0:
            asyncio.get_running_loop().remove_reader(file)
        if connection is not None:
            connection.close()

    def _poll_for(self, seconds: float) -> None:
        self.close()
        self._poll_until = asyncio.get_running_loop().time() + seconds

    async def _listen(self) -> None:
        attempt = self._attempt = object()

        def connect() -> None:  # runs to its end even if the task that awaits the thread is cancelled
            connection = self._connect()
            with self._connection_lock:
                if self._attempt is attempt:
                    self._connection = connection
                elif connection is not None:
                    connection.close()

        try:
            await to_thread.run_sync(connect)
        except Exception as error:
            _log.warning("notices_not_heard", reason=repr(error), polled_seconds=_FALLBACK_SECONDS)
            self._poll_for(_FALLBACK_SECONDS)
            return
        if self._connection is None:
            self._poll_until = float("inf")
            return
        self._file = self._connection.fileno()
        asyncio.get_running_loop().add_reader(self._file, self._read)

    def _read(self) -> None:
        if self._connection is None:
            return
        server = self._connection.pgconn
        try:
            server.consume_input()
            while (notification := server.notifies()) is not None:
                self._on_notify(notification.extra.decode())
        except Exception as error:
            _log.warning("notices_lost", reason=repr(error))
            self._poll_for(_FIRST_POLLING_SECONDS)
            self._wakeup.set()
