"""Look-up of a name that ends in time; the system's own knows no deadline."""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

MOST_AT_ONCE = 64
"""Look-ups of a process, with those that nobody waits for any more and that cannot be stopped."""
Row = tuple[Any, Any, Any, Any, tuple[Any, ...]]
"""One of the answers of `getaddrinfo`; the last is the socket's address."""


class NotResolved(OSError):
    """The name server did not answer in time."""


def _look_up(host: str, port: int) -> Sequence[Row]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


class Resolver:
    """Looks names up, each in a thread that is left behind when the time is over. `look_up`: as `getaddrinfo`."""

    def __init__(
        self, look_up: Callable[[str, int], Sequence[Row]] = _look_up, most_at_once: int = MOST_AT_ONCE
    ) -> None:
        self._look_up = look_up
        self._places = threading.BoundedSemaphore(most_at_once)

    def addresses(self, host: str, port: int, seconds: float) -> list[str]:
        """The name's addresses, each once. Raises NotResolved after `seconds`, else OSError or ValueError."""
        give_up_at = time.monotonic() + seconds
        if not self._places.acquire(timeout=seconds):
            raise NotResolved("the name was not resolved in time")
        answer: Future[Sequence[Row]] = Future()
        self._begin(host, port, answer)
        try:
            rows = answer.result(max(0.0, give_up_at - time.monotonic()))
        except TimeoutError:
            raise NotResolved("the name was not resolved in time") from None
        return list(dict.fromkeys(str(row[4][0]) for row in rows))

    def _begin(self, host: str, port: int, answer: "Future[Sequence[Row]]") -> None:
        try:
            threading.Thread(target=self._answer, args=(host, port, answer), name="resolve", daemon=True).start()
        except RuntimeError:  # the machine has no thread left just now
            self._places.release()
            raise

    def _answer(self, host: str, port: int, answer: "Future[Sequence[Row]]") -> None:
        try:
            answer.set_result(self._look_up(host, port))
        except Exception as error:  # raised where it is waited for
            answer.set_exception(error)
        finally:
            self._places.release()
