"""A server that sends arbitrary bytes, even outside HTTP, and records the requests."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

LEAST_SENT_BYTES = 64 * 1024
Reply = Callable[[str, socket.socket], None]
"""Is given the head of a request and the connection, and sends what it likes; then the connection is closed."""


@dataclass
class HostileCoordinator:
    """`heads` are the requests as they came. `connections` counts those that were accepted."""

    reply: Reply
    url: str = ""
    heads: list[str] = field(default_factory=list)
    connections: int = 0
    ending: threading.Event = field(default_factory=threading.Event)


@contextmanager
def hostile(reply: Reply) -> Iterator[HostileCoordinator]:
    """One that answers every request with `reply`, on a port of its own."""
    server = HostileCoordinator(reply)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        server.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread = threading.Thread(target=_accept, args=(server, listening))
        thread.start()
        try:
            yield server
        finally:
            server.ending.set()
            thread.join()


def _accept(server: HostileCoordinator, listening: socket.socket) -> None:
    threads = []
    while not server.ending.is_set():
        with suppress(TimeoutError):
            connection, _ = listening.accept()
            server.connections += 1
            threads.append(threading.Thread(target=_serve, args=(server, connection)))
            threads[-1].start()
    for thread in threads:
        thread.join()


def _serve(server: HostileCoordinator, connection: socket.socket) -> None:
    with connection, suppress(OSError):
        connection.settimeout(10)
        came = b""
        while b"\r\n\r\n" not in came:
            piece = connection.recv(65536)
            if not piece:
                return
            came += piece
        server.heads.append(came.partition(b"\r\n\r\n")[0].decode())
        server.reply(server.heads[-1], connection)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


def head(status: str, **headers: object) -> bytes:
    """The beginning of an answer; `Content_Length=3` is the header Content-Length."""
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def whole(status: str, body: bytes, **headers: object) -> Reply:
    """An answer of a fixed body, the last of its connection."""

    def reply(asked: str, connection: socket.socket) -> None:
        answered = head(status, Content_Length=len(body), Connection="close", **headers)
        connection.sendall(answered + body)

    return reply


def chunked(status: str, total_bytes: int, **headers: object) -> Reply:
    """So many zeros, of which nobody says beforehand how many they are."""

    def reply(asked: str, connection: socket.socket) -> None:
        connection.sendall(head(status, Transfer_Encoding="chunked", **headers))
        for _ in range(total_bytes // LEAST_SENT_BYTES):
            connection.sendall(b"%x\r\n%b\r\n" % (LEAST_SENT_BYTES, bytes(LEAST_SENT_BYTES)))
        connection.sendall(b"0\r\n\r\n")

    return reply


def dripping(server: threading.Event, start: bytes, drop: bytes) -> Reply:
    """An answer that begins and then comes a drop at a time, without end."""

    def reply(asked: str, connection: socket.socket) -> None:
        connection.sendall(start)
        while not server.wait(0.05):
            connection.sendall(drop)

    return reply
