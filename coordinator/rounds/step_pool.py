"""Pool of warm processes that compute steps, so that a step that hangs or dies harms only its own federation.

A background process has as many of them as concurrent tasks. Without a pool the caller computes the step itself.
"""

import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import psutil
import structlog

from coordinator.rounds.schemas import Input, RestoreInput
from coordinator.rounds.step_messages import decode, encode
from coordinator.settings import get_settings

MODULE = "coordinator.rounds.step_process"
LOOK_SECONDS = 0.25
GROWTH_BYTES = 512 * 1024**2
"""A process that has grown by so much since its first step is replaced before the next one."""
_log = structlog.get_logger(__name__)


class StepProcessExit(Exception):
    """The process that computed the step ended before it responded. The text says how."""


class StepOverran(Exception):
    """The step was not done within `step_seconds`."""


class StepCanceled(Exception):
    """The step's result is not needed any more."""


class StepProcess:
    """One process. The constructor starts it, and it computes one step at a time."""

    def __init__(self, module: str = MODULE) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", module, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._connection: Connection[bytes, bytes] = Connection(ours.detach())
        self._first_bytes: int | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ask(self, request: bytes, seconds: float, is_canceled: Callable[[], bool]) -> bytes:
        """The response. Raises StepOverran, StepCanceled, and EOFError or OSError if the process is gone."""
        until = time.monotonic() + seconds
        self._connection.send_bytes(request)
        while not self._connection.poll(LOOK_SECONDS):
            if time.monotonic() > until:
                raise StepOverran
            if is_canceled():
                raise StepCanceled
        response = self._connection.recv_bytes()
        self._first_bytes = self._first_bytes or self._resident_bytes()
        return response

    def usable(self) -> bool:
        """True if the process is alive and has not grown too much."""
        if self._process.poll() is not None:
            return False
        return self._first_bytes is None or self._resident_bytes() - self._first_bytes <= GROWTH_BYTES

    def end(self) -> str:
        """Ends the process in any state, and returns how it ended."""
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):  # it ends by itself when the socket is closed, if it can
            self._process.wait(LOOK_SECONDS)
        self._process.kill()
        code = self._process.wait()
        if code >= 0:
            return f"exit code {code}"
        hint = " (the system kills processes this way when memory runs out)" if -code == signal.SIGKILL else ""
        return f"signal {signal.Signals(-code).name}{hint}"

    def _resident_bytes(self) -> int:
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return 0


class _Pool:
    """At most `size` processes. A thread that computes has one to itself."""

    def __init__(self, size: int, module: str) -> None:
        self._module = module
        self._places: queue.LifoQueue[StepProcess | None] = queue.LifoQueue()
        for _ in range(size - 1):
            self._places.put(None)
        self._places.put(StepProcess(module))  # started early: the first step would wait for its imports

    def ask(self, request: bytes, seconds: float, is_canceled: Callable[[], bool]) -> bytes:
        process = self._places.get()
        try:
            if process is None or not process.usable():
                _end(process)
                process = None
                process = StepProcess(self._module)  # a failure to start is not the death of a step
            return _ask(process, request, seconds, is_canceled)
        except BaseException:
            _end(process)
            process = None
            raise
        finally:
            self._places.put(process)

    def close(self) -> None:
        with suppress(queue.Empty):
            while True:
                _end(self._places.get_nowait())


def _ask(process: StepProcess, request: bytes, seconds: float, is_canceled: Callable[[], bool]) -> bytes:
    try:
        return process.ask(request, seconds, is_canceled)
    except (EOFError, OSError):
        raise StepProcessExit(process.end()) from None


def _end(process: StepProcess | None) -> None:
    if process is not None:
        _log.info("step_process_ended", pid=process.pid, how=process.end())


_pools: list[_Pool] = []


@contextmanager
def running(size: int, module: str = MODULE) -> Iterator[None]:
    """Computes the steps of this process in `size` others, which run `module`, until the block ends."""
    pool = _Pool(size, module)
    _pools.append(pool)
    try:
        yield
    finally:
        _pools.remove(pool)
        pool.close()


def compute(inputs: Input | RestoreInput, is_canceled: Callable[[], bool] = lambda: False) -> Any:
    """The step's Result, or None for a RestoreInput. Calls `is_canceled` four times a second.

    Raises StepProcessExit, StepOverran and StepCanceled if a pool runs, and the errors of `step_messages.decode`.
    """
    if _pools:
        return decode(_pools[-1].ask(encode(inputs), get_settings().step_seconds, is_canceled))
    from coordinator.rounds.computation import run_step

    return decode(run_step(encode(inputs)))
