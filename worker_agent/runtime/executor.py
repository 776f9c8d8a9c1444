"""Executor: runs a lease to an outcome in a warm child process (`spawn`), the only process that loads torch.

Parent and child exchange JSON over a pipe; tensors go through files in the job's folder. A child that dies ends its
job with that reason and nothing else. It is replaced after `jobs_per_executor` jobs, or when its memory has grown by
`executor_growth_bytes` since its first job. If this process is killed, the child ends too.
"""

import contextlib
import gc
import importlib
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import psutil
import structlog
from pydantic import ValidationError

from federated.bounds import MAX_LARGE
from federated.protocol import FailureFacts, JobProgress, Lease, SubmitRequest
from worker_agent.settings import AgentSettings

CHILD_MODULE = "worker_agent.training.child"
POLLING_SECONDS = 0.1
STOP_SECONDS = 5.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """A lease with its files; results go into `folder`."""

    lease: Lease
    instruction: Path | None
    memory: Path | None
    folder: Path


@dataclass(frozen=True, slots=True)
class Finished:
    """The job is done. Its update and memory, if any, are in the task's folder."""

    submission: SubmitRequest


@dataclass(frozen=True, slots=True)
class Failed:
    """The job is not done. `declined`: it fails again until the owner changes data or model.

    `detail` is for this node's log only; `code` and `facts` are disclosed.
    """

    code: str
    detail: str
    transient: bool
    declined: bool = False
    facts: FailureFacts = field(default_factory=FailureFacts)


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The job was canceled while it ran."""


Outcome = Finished | Failed | Interrupted


class Executor:
    """Runs jobs one at a time, for one slot and one thread.

    `child_module` is imported in the child by name and must have `serve(connection, settings)`.
    """

    def __init__(self, settings: AgentSettings, child_module: str = CHILD_MODULE) -> None:
        self._settings = settings
        self._child_module = child_module
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the warm child, or None when there is none."""
        return self._child.process.pid if self._child is not None else None

    def warm_up(self) -> None:
        """Start the child now, so that the first job does not wait for its imports."""
        self._living_child()

    def run(
        self,
        task: Task,
        is_canceled: Callable[[], bool],
        progress: Callable[[JobProgress], None],
        until: float = math.inf,
    ) -> Outcome:
        """Do one job. `is_canceled` is polled ten times a second. The child then has `cancel_seconds` to leave it.

        A job that is not done at `until` (time.monotonic) is canceled the same way, and declined.
        """
        child = self._living_child()
        try:
            outcome = self._converse(child, task, lambda: is_canceled() or time.monotonic() > until, progress)
        except (EOFError, OSError):
            return self._handle_crash(child)
        child.jobs += 1
        self._recycle(child)
        if isinstance(outcome, Interrupted) and time.monotonic() > until and not is_canceled():
            return out_of_time(self._settings.policy.max_job_seconds)
        return outcome

    def close(self) -> None:
        """End the child: ask it to stop, then kill it."""
        if self._child is not None:
            self._child.stop(STOP_SECONDS)
            self._child = None

    def _living_child(self) -> "_Child":
        if self._child is not None and not self._child.is_alive():
            self._child.kill()
            _log.warning("executor_died", reason=_exit_reason(self._child.process.exitcode), between_jobs=True)
            self._child = None
        self._child = self._child or _Child(self._settings, self._child_module)
        return self._child

    def _converse(
        self,
        child: "_Child",
        task: Task,
        is_canceled: Callable[[], bool],
        progress: Callable[[JobProgress], None],
    ) -> Outcome:
        child.say(_order(task))
        leave_by: float | None = None
        while True:
            message = child.hear(POLLING_SECONDS)
            if message is not None:
                outcome = _outcome(message, progress)
                if outcome is not None:
                    return outcome
            if leave_by is None and is_canceled():
                child.say({"do": "cancel"})
                leave_by = time.monotonic() + self._settings.cancel_seconds
            if leave_by is not None and time.monotonic() > leave_by:
                _log.warning("executor_killed", pid=child.process.pid, reason="did not leave a canceled job")
                child.kill()
                return Interrupted()

    def _handle_crash(self, child: "_Child") -> Failed:
        child.kill()
        self._child = None
        reason = _exit_reason(child.process.exitcode)
        _log.error("executor_died", pid=child.process.pid, reason=reason)
        return Failed("executor_died", f"the training process ended: {reason}", transient=True)

    def _recycle(self, child: "_Child") -> None:
        if not child.is_alive():
            self._child = None
            return
        now_bytes = child.resident_bytes()
        if child.jobs == 1:
            child.first_bytes = now_bytes
        grown_bytes = now_bytes - child.first_bytes
        if child.jobs >= self._settings.jobs_per_executor or grown_bytes > self._settings.executor_growth_bytes:
            _log.info("executor_recycled", pid=child.process.pid, jobs=child.jobs, grown_bytes=grown_bytes)
            self.close()


class _Child:
    """A child process and our end of its pipe."""

    def __init__(self, settings: AgentSettings, module: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        arguments = (child_pipe, settings.model_dump_json(), module)
        # A daemon, so that it does not keep this process from ending.
        self.process: SpawnProcess = context.Process(target=_serve, args=arguments, name="executor", daemon=True)
        self.process.start()
        child_pipe.close()
        self.jobs = 0
        self.first_bytes = 0

    def say(self, message: dict[str, Any]) -> None:
        self._pipe.send_bytes(json.dumps(message).encode())

    def hear(self, seconds: float) -> dict[str, Any] | None:
        """The next message, or None. Raises EOFError when the child has ended and no message is left."""
        if self._pipe.poll(0) or wait([self._pipe, self.process.sentinel], timeout=seconds):
            if not self._pipe.poll(0):
                if self.process.is_alive():
                    return None
                raise EOFError
            message: dict[str, Any] = json.loads(self._pipe.recv_bytes(), object_hook=_finite)
            return message
        return None

    def is_alive(self) -> bool:
        """Whether the child can do a job. A killed process is a zombie until its last thread has ended."""
        try:
            return self.process.is_alive() and psutil.Process(self.process.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def resident_bytes(self) -> int:
        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def stop(self, seconds: float) -> None:
        with contextlib.suppress(OSError):
            self.say({"do": "stop"})
            self.process.join(seconds)
        self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self._pipe.close()


def out_of_time(allowed_seconds: float | None) -> Failed:
    """Outcome of a job that exceeded the time limit of this node's owner."""
    detail = f"the job was not done within this node's max_job_seconds, {allowed_seconds}"
    facts = FailureFacts(allowed=min(MAX_LARGE, int(allowed_seconds or 0)))
    return Failed("policy_seconds", detail, transient=False, declined=True, facts=facts)


def _order(task: Task) -> dict[str, Any]:
    return {
        "do": "run",
        "lease": task.lease.model_dump(mode="json"),
        "instruction": str(task.instruction) if task.instruction is not None else None,
        "memory": str(task.memory) if task.memory is not None else None,
        "folder": str(task.folder),
    }


def _outcome(message: dict[str, Any], progress: Callable[[JobProgress], None]) -> Outcome | None:
    """Outcome of the job in a child's message; None while the job continues."""
    try:
        match message.pop("say", None):
            case "done":
                return Finished(SubmitRequest.model_validate(message["submission"]))
            case "failed":
                return Failed(**message | {"facts": FailureFacts.model_validate(message["facts"])})
            case "interrupted":
                return Interrupted()
            case "progress":
                progress(JobProgress.model_validate(message))
    except (KeyError, TypeError, ValidationError) as error:
        return Failed("executor_not_understood", f"the training process sent an invalid message: {error}", False)
    return None


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """The values without numbers that JSON cannot represent: one NaN loss must not cost the lease."""
    return {name: v for name, v in values.items() if not isinstance(v, float) or math.isfinite(v)}


def _exit_reason(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (the system sends it when memory runs out)" if -code == signal.SIGKILL else ""
        return f"signal {name}{hint}"
    return f"exit code {code}"


def _serve(pipe: "Connection[Any, Any]", settings_json: str, module: str) -> None:
    """Main function of the child. It ignores Ctrl-C, which a terminal sends to all processes; the parent decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    settings = AgentSettings(**json.loads(settings_json))
    gc.disable()  # imported objects stay, and scanning them repeatedly would only delay the first job
    child_module = importlib.import_module(module)
    gc.freeze()
    gc.enable()
    with contextlib.suppress(EOFError):
        child_module.serve(pipe, settings)
    sys.stdout.flush()
    sys.stderr.flush()
    # The regular shutdown of an interpreter with torch takes seconds and has no benefit.
    os._exit(0)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
