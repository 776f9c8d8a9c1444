"""The child process of an executor: one session factory, jobs one after the other, JSON over a pipe.

parent -> child  run (lease, instruction, memory, folder), cancel (while a job runs), stop
child -> parent  ready, progress, done, failed, interrupted
"""

import gc
import json
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from federated.algorithm_kit.local_training import TrainingDiverged
from federated.contract import JobDeclined
from federated.protocol import DISK_FULL, FailureFacts, Lease
from federated.session import JobInterrupted
from worker_agent.errors import is_disk_full
from worker_agent.node.disclosure import stable_code, whereabouts
from worker_agent.settings import AgentSettings
from worker_agent.training.device import repeatable
from worker_agent.training.job_errors import JobRefused
from worker_agent.training.jobs import AlgorithmMissing, InstructionInvalid, JobFiles, run_job
from worker_agent.training.session import SessionFactory

REPORT_SECONDS = 0.2
DETAIL_CHARACTERS = 20_000


def serve(connection: "Connection[Any, Any]", settings: AgentSettings) -> None:
    """Run jobs until the parent sends stop or ends (EOFError)."""
    repeatable(settings.training_threads)
    _Child(connection, settings).serve()


class _Child:
    """One pipe and one session factory."""

    def __init__(self, connection: "Connection[Any, Any]", settings: AgentSettings) -> None:
        self._connection = connection
        self._sessions = SessionFactory(settings)
        self._last_report = 0.0
        self._stopping = False

    def serve(self) -> None:
        self._say({"say": "ready"})
        while not self._stopping:
            message = self._hear()
            # A cancel for a job that has ended meanwhile is ignored.
            if message["do"] == "run":
                self._say(self._outcome(message))
            elif message["do"] == "stop":
                return

    def _outcome(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Run a job. A failure other than a refusal leaves the model in an unknown state: the next job reloads it."""
        try:
            return self._run(message)
        except JobRefused as error:
            return _failure_message(error.code, error.detail, declined=True, facts=error.facts)
        except JobDeclined as error:
            return _failure_message(error.code, error.detail, declined=True)
        except EOFError:
            raise
        except JobInterrupted:
            outcome: dict[str, Any] = {"say": "interrupted"}
        except Exception as error:
            outcome = _failure_of(error)
        if self._sessions.clear():
            gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return outcome

    def _run(self, message: Mapping[str, Any]) -> dict[str, Any]:
        files = JobFiles(
            instruction=_path(message["instruction"]), memory=_path(message["memory"]), folder=Path(message["folder"])
        )
        result = run_job(self._sessions, Lease.model_validate(message["lease"]), files, self._report)
        submission = result.submission.model_dump(mode="json")
        return {"say": "done", "submission": submission, "update": result.update, "memory": result.memory}

    def _report(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        if self._connection.poll(0):
            self._stopping = self._hear()["do"] == "stop"
            raise JobInterrupted
        if done == total or time.monotonic() - self._last_report >= REPORT_SECONDS:
            self._last_report = time.monotonic()
            self._say({"say": "progress", "done": done, "total": total, "metrics": dict(metrics)})

    def _say(self, message: Mapping[str, Any]) -> None:
        self._connection.send_bytes(json.dumps(message).encode())

    def _hear(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._connection.recv_bytes())
        return message


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _failure_of(error: Exception) -> dict[str, Any]:
    """The message for a failure. It is transient if the job may succeed later or in another process."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return _failure_message("out_of_memory", str(error), transient=True)
    if is_disk_full(error):
        return _failure_message(DISK_FULL, str(error), transient=True)
    final = {
        AlgorithmMissing: "algorithm_missing",
        InstructionInvalid: "instruction_invalid",
        TrainingDiverged: "training_diverged",
    }
    for kind, code in final.items():
        if isinstance(error, kind):
            return _failure_message(code, str(error))
    detail = "".join(traceback.format_exception(error))
    return _failure_message("training_failed", detail, transient=True, facts=whereabouts(error))


def _failure_message(
    code: str, detail: str, *, transient: bool = False, declined: bool = False, facts: FailureFacts | None = None
) -> dict[str, Any]:
    """`detail` is for this node's log; code and facts are sent."""
    return {
        "say": "failed",
        "code": stable_code(code),
        "detail": detail[-DETAIL_CHARACTERS:],
        "transient": transient,
        "declined": declined,
        "facts": (facts or FailureFacts()).model_dump(mode="json"),
    }
