"""An HTTP proxy that keeps every request it passes on, and every answer."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from tests.support.service import TLS

ANSWER_SECONDS = 120.0
_OWN = {"host", "content-length", "transfer-encoding", "connection", "date", "server", "content-encoding"}


class RecordingProxy:
    """`requests`: method, path with query, headers as one text, and body, in the order of their arrival.

    `answers`: the bodies that came back, in the order of their arrival. With a `prefix` the proxy serves below that
    path and takes it away, unless `strips` is false.
    """

    def __init__(self, prefix: str = "", *, strips: bool = True) -> None:
        self.prefix, self.strips = prefix, strips
        self.requests: list[tuple[str, str, str, bytes]] = []
        self.answers: list[bytes] = []

    def forget(self) -> None:
        """Drops what was kept so far."""
        self.requests.clear()
        self.answers.clear()

    @contextmanager
    def before(self, target: str) -> Iterator[str]:
        """The URL under which `target` is reached while the block runs."""
        http = httpx.Client(timeout=ANSWER_SECONDS, trust_env=False, verify=TLS)
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(target, http))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}{self.prefix}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
            http.close()

    def _handler(self, target: str, http: httpx.Client) -> type[BaseHTTPRequestHandler]:
        kept, answers, prefix = self.requests, self.answers, self.prefix
        taken = prefix if self.strips else ""

        class Handler(BaseHTTPRequestHandler):
            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                kept.append((self.command, self.path, str(self.headers), body))
                if not self.path.startswith(f"{prefix}/"):
                    self.send_error(404)
                    return
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN}
                headers["accept-encoding"] = "identity"
                url = target + self.path.removeprefix(taken)
                answer = http.request(self.command, url, content=body, headers=headers)
                answers.append(answer.content)
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    if name not in _OWN:
                        self.send_header(name, value)
                if answer.status_code != 204:
                    length = answer.headers["content-length"] if self.command == "HEAD" else len(answer.content)
                    self.send_header("content-length", str(length))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = pass_on  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
                """Nothing: tests read what was recorded."""

        return Handler
