"""DNS lookup with a deadline, which the system's resolver does not have."""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

MOST_AT_ONCE = 64
"""Most lookups of a process at once, including abandoned ones, which cannot be stopped."""
Row = tuple[Any, Any, Any, Any, tuple[Any, ...]]
"""A row of `getaddrinfo`; the last field is the socket address."""


class ResolutionTimeout(OSError):
    """The name server did not respond in time."""


def _look_up(host: str, port: int) -> Sequence[Row]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


class Resolver:
    """Resolves names, each in a thread that is abandoned at the deadline. `look_up`: like `getaddrinfo`."""

    def __init__(
        self, look_up: Callable[[str, int], Sequence[Row]] = _look_up, most_at_once: int = MOST_AT_ONCE
    ) -> None:
        self._look_up = look_up
        self._slots = threading.BoundedSemaphore(most_at_once)

    def addresses(self, host: str, port: int, seconds: float) -> list[str]:
        """The name's distinct addresses. Raises ResolutionTimeout after `seconds`, else OSError or ValueError."""
        give_up_at = time.monotonic() + seconds
        if not self._slots.acquire(timeout=seconds):
            raise ResolutionTimeout("the name was not resolved in time")
        future: Future[Sequence[Row]] = Future()
        self._start(host, port, future)
        try:
            rows = future.result(max(0.0, give_up_at - time.monotonic()))
        except TimeoutError:
            raise ResolutionTimeout("the name was not resolved in time") from None
        return list(dict.fromkeys(str(row[4][0]) for row in rows))

    def _start(self, host: str, port: int, future: "Future[Sequence[Row]]") -> None:
        try:
            threading.Thread(target=self._resolve, args=(host, port, future), name="resolve", daemon=True).start()
        except RuntimeError:  # no more threads on this machine
            self._slots.release()
            raise

    def _resolve(self, host: str, port: int, future: "Future[Sequence[Row]]") -> None:
        try:
            future.set_result(self._look_up(host, port))
        except Exception as error:  # raised by the waiting thread
            future.set_exception(error)
        finally:
            self._slots.release()
