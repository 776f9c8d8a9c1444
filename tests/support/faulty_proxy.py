"""A TCP proxy between an agent and its coordinator that does to their bytes what bad networks do.

It knows of HTTP only that a client asks and a server answers: an exchange begins with the first byte that a client
sends after an answer. What goes wrong is said by `Faults`, which a test may replace while the proxy runs.
"""

import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from select import select
from urllib.parse import urlsplit

PIECE_BYTES = 16 * 1024
_POLLING_SECONDS = 0.05
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing throws away what is unsent, and resets


@dataclass(frozen=True)
class Faults:
    """What happens to the bytes. `seed` decides how long each delay is and where an answer is truncated.

    cut_up_bytes, cut_down_bytes: the connection is reset each time that so many more bytes went to, came from the
    server. truncate_every: every so manieth answer ends early, in good order. duplicate_every: the bytes of every so
    manieth request are sent to the server once more, on a connection of their own whose answer nobody reads.
    """

    cut_up_bytes: int | None = None
    cut_down_bytes: int | None = None
    delay_seconds: float = 0.0
    bytes_per_second: float | None = None
    truncate_every: int | None = None
    duplicate_every: int | None = None
    seed: int = 0


@dataclass
class Counts:
    """What went through since the faults were set."""

    up_bytes: int = 0
    down_bytes: int = 0
    exchanges: int = 0
    cuts: int = 0
    truncated: int = 0
    duplicated: int = 0


class FaultyProxy:
    """`counts` tells what went through and what was done to it; `set` starts anew with other faults."""

    def __init__(self, faults: Faults = Faults()) -> None:
        self.set(faults)
        self._lock = threading.Lock()
        self._target = ("", 0)

    def set(self, faults: Faults) -> None:
        """From now on these faults, and no bytes counted yet."""
        self.faults, self.counts, self.random = faults, Counts(), random.Random(faults.seed)

    @contextmanager
    def before(self, target: str) -> Iterator[str]:
        """The URL under which `target` is reached while the block runs."""
        parts = urlsplit(target)
        self._target = (str(parts.hostname), int(parts.port or 80))
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.settimeout(_POLLING_SECONDS)
            ending = threading.Event()
            accepting = threading.Thread(target=self._accept, args=(listening, ending), daemon=True)
            accepting.start()
            try:
                yield f"http://127.0.0.1:{listening.getsockname()[1]}"
            finally:
                ending.set()
                accepting.join()

    def _accept(self, listening: socket.socket, ending: threading.Event) -> None:
        while not ending.is_set():
            with suppress(TimeoutError):
                client, _ = listening.accept()
                threading.Thread(target=self._serve, args=(client, ending), daemon=True).start()

    def _serve(self, client: socket.socket, ending: threading.Event) -> None:
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        pair = _Pair(self, client, server)
        with client, server, suppress(OSError):
            while not ending.is_set() and pair.go_on():
                pass

    def count(self, *, up: int = 0, down: int = 0) -> tuple[int, bool]:
        """Counts a piece; returns how much of it passes, and whether the connection is cut after that."""
        with self._lock:
            every = self.faults.cut_up_bytes if up else self.faults.cut_down_bytes
            before = self.counts.up_bytes if up else self.counts.down_bytes
            size = up or down
            passes = size if every is None else min(size, every - before % every)
            cut = every is not None and (before + passes) % every == 0
            self.counts.up_bytes += passes if up else 0
            self.counts.down_bytes += 0 if up else passes
            self.counts.cuts += cut
            return passes, cut

    def begin_answer(self) -> tuple[int | None, bool]:
        """Counts an exchange whose answer begins: bytes until it ends, and whether its request comes twice."""
        with self._lock:
            self.counts.exchanges += 1
            number, faults = self.counts.exchanges, self.faults
            truncated = faults.truncate_every is not None and number % faults.truncate_every == 0
            doubled = faults.duplicate_every is not None and number % faults.duplicate_every == 0
            self.counts.truncated += truncated
            self.counts.duplicated += doubled
            return (self.random.randrange(400) if truncated else None), doubled

    def send_again(self, request: bytes) -> None:
        """Sends the bytes of a request on a connection of their own, and reads what comes until nothing does."""
        with suppress(OSError), socket.create_connection(self._target, timeout=30) as server:
            server.sendall(request)
            server.shutdown(socket.SHUT_WR)
            while server.recv(PIECE_BYTES):
                pass


@dataclass
class _Pair:
    """A client's connection and ours to the server."""

    proxy: FaultyProxy
    client: socket.socket
    server: socket.socket
    request: bytearray = field(default_factory=bytearray)
    answering: bool = False
    left_bytes: int | None = None

    def go_on(self) -> bool:
        """Passes on what has come; False when the connection is over."""
        readable, _, _ = select([self.client, self.server], [], [], _POLLING_SECONDS)
        return all(self._pass_on(source) for source in readable)

    def _pass_on(self, source: socket.socket) -> bool:
        piece = source.recv(PIECE_BYTES)
        if not piece:
            return False
        self._slow_down(len(piece))
        return self._up(piece) if source is self.client else self._down(piece)

    def _slow_down(self, size: int) -> None:
        faults = self.proxy.faults
        pause = self.proxy.random.uniform(0, 2 * faults.delay_seconds)
        time.sleep(pause + (size / faults.bytes_per_second if faults.bytes_per_second else 0.0))

    def _up(self, piece: bytes) -> bool:
        if self.answering:
            self.answering, self.request = False, bytearray()
        self.request += piece
        return self._forward(self.server, piece, *self.proxy.count(up=len(piece)))

    def _down(self, piece: bytes) -> bool:
        if not self.answering:
            self.answering = True
            self.left_bytes, doubled = self.proxy.begin_answer()
            if doubled:
                again = threading.Thread(target=self.proxy.send_again, args=(bytes(self.request),), daemon=True)
                again.start()
        if self.left_bytes is not None:
            piece, self.left_bytes = piece[: self.left_bytes], self.left_bytes - len(piece)
        if not piece:
            return False
        goes_on = self._forward(self.client, piece, *self.proxy.count(down=len(piece)))
        return goes_on and (self.left_bytes is None or self.left_bytes > 0)

    def _forward(self, to: socket.socket, piece: bytes, passes: int, cut: bool) -> bool:
        to.sendall(piece[:passes])
        if cut:
            for side in (self.client, self.server):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        return not cut
