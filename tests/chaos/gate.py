"""Gate at which processes under test report the steps they reach, and at which one of them can be held."""

import contextlib
import json
import shutil
import socketserver
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.chaos.points import STEPS, Step

WATCHED = Path(__file__).parent / "watched"


@dataclass(frozen=True, slots=True)
class Reached:
    """A process stands at a step, and waits."""

    step: str
    pid: int


class Gate:
    """Counts the steps reached; the one that is armed holds its process until it is let go."""

    def __init__(self, folder: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._path, self._table = folder / "gate", folder / "steps.json"
        told = {"gate": str(self._path), "steps": [asdict(step) for step in STEPS]}
        self._table.write_text(json.dumps(told), encoding="utf-8")
        self._lock = threading.Lock()
        self._armed: tuple[str, int] | None = None
        self._reached: Reached | None = None
        self._held, self._go = threading.Event(), threading.Event()
        self._server = _Server(str(self._path), self)
        threading.Thread(target=self._server.serve_forever, name="gate", daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in order to report here."""
        return {"PYTHONPATH": str(WATCHED), "FEDLOOM_TESTS_WATCHED": str(self._table)}

    def count_anew(self, step: Step | None = None, occurrence: int = 1) -> None:
        """Forgets what was reached; from now on the step's so-manieth process is held."""
        self.let_go()
        with self._lock:
            self.counts.clear()
            self._armed = None if step is None else (step.name, occurrence)
            self._reached = None
            self._held, self._go = threading.Event(), threading.Event()

    def held(self, seconds: float) -> Reached | None:
        """Who is held; waits for it."""
        return self._reached if self._held.wait(seconds) else None

    def let_go(self) -> None:
        """Nobody is held any more."""
        with self._lock:
            self._armed = None
        self._go.set()

    def pass_by(self, name: str, pid: int) -> None:
        """Returns when the process may go on."""
        with self._lock:
            self.counts[name] += 1
            if self._armed != (name, self.counts[name]):
                return
            self._reached, go = Reached(name, pid), self._go
        self._held.set()
        go.wait()

    def close(self) -> None:
        """Lets everybody go, for good."""
        self.let_go()
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: str, gate: Gate) -> None:
        self.gate = gate
        super().__init__(path, _Passing)


class _Passing(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        name, _, pid = self.rfile.readline().decode().partition(" ")
        if name:
            self.server.gate.pass_by(name, int(pid))
            with contextlib.suppress(OSError):  # of a process that was killed here
                self.wfile.write(b".")


@contextmanager
def gated() -> Iterator[Gate]:
    """An open gate; its folder is short of name, as the path of a socket must be."""
    folder = Path(tempfile.mkdtemp(prefix="fedloom-chaos-"))
    gate = Gate(folder)
    try:
        yield gate
    finally:
        gate.close()
        shutil.rmtree(folder)
