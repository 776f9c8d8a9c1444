"""Warm processes that compute steps, so that a step that never ends, or dies, harms its own federation alone.

A background process keeps one for each of its tasks at once. Where no pool runs, a step is computed by its caller.
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
"""A process that grew by so much since its first step is replaced after the next one."""
_log = structlog.get_logger(__name__)


class StepProcessDied(Exception):
    """The process that computed the step ended before it answered; the text says how."""


class StepOverran(Exception):
    """The step was not done within `step_seconds`."""


class StepCanceled(Exception):
    """Nobody wants the step's result any more."""


class StepProcess:
    """One process. It is started when it is made, and computes one step at a time."""

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
        """Its answer. Raises StepOverran, StepUnwanted, and EOFError or OSError if it is there no more."""
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
        """Whether it is there and has not grown too much."""
        if self._process.poll() is not None:
            return False
        return self._first_bytes is None or self._resident_bytes() - self._first_bytes <= GROWTH_BYTES

    def end(self) -> str:
        """Ends it, whatever it does, and returns how it ended."""
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):  # without somebody to talk to it ends by itself, if it can
            self._process.wait(LOOK_SECONDS)
        self._process.kill()
        code = self._process.wait()
        if code >= 0:
            return f"exit code {code}"
        hint = " (the system ends processes so when memory runs out)" if -code == signal.SIGKILL else ""
        return f"signal {signal.Signals(-code).name}{hint}"

    def _resident_bytes(self) -> int:
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return 0


class _Pool:
    """At most `size` processes; a thread that computes has one to itself."""

    def __init__(self, size: int, module: str) -> None:
        self._module = module
        self._places: queue.LifoQueue[StepProcess | None] = queue.LifoQueue()
        for _ in range(size - 1):
            self._places.put(None)
        self._places.put(StepProcess(module))  # warm before the first step, which would wait for its imports

    def ask(self, request: bytes, seconds: float, is_canceled: Callable[[], bool]) -> bytes:
        process = self._places.get()
        try:
            if process is None or not process.usable():
                _end(process)
                process = None
                process = StepProcess(self._module)  # what keeps it from starting is no death of a step
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
        raise StepProcessDied(process.end()) from None


def _end(process: StepProcess | None) -> None:
    if process is not None:
        _log.info("step_process_ended", pid=process.pid, how=process.end())


_pools: list[_Pool] = []


@contextmanager
def running(size: int, module: str = MODULE) -> Iterator[None]:
    """Steps of this process are computed in `size` others until the block ends; these run `module`."""
    pool = _Pool(size, module)
    _pools.append(pool)
    try:
        yield
    finally:
        _pools.remove(pool)
        pool.close()


def compute(inputs: Input | RestoreInput, is_canceled: Callable[[], bool] = lambda: False) -> Any:
    """The step's Result; None for an AgainInput. `unwanted` is asked four times a second.

    Raises StepDied, StepOverran and StepUnwanted where a pool runs, and whatever `step_messages.decode` raises.
    """
    if _pools:
        return decode(_pools[-1].ask(encode(inputs), get_settings().step_seconds, is_canceled))
    from coordinator.rounds.computation import run_step

    return decode(run_step(encode(inputs)))
