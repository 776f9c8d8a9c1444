"""A real child process that follows the executor's contract and does what `lease.settings["do"]` says."""

import hashlib
import json
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from worker_agent.settings import AgentSettings

_kept: list[bytearray] = []


def serve(pipe: "Connection[Any, Any]", settings: AgentSettings) -> None:
    """Answers `run` until told to stop; counts its jobs in `<folder>/jobs-done`."""
    _say(pipe, say="ready")
    while True:
        message = json.loads(pipe.recv_bytes())
        if message["do"] == "stop":
            return
        if message["do"] == "run":
            with (settings.folder / "jobs-done").open("a") as file:
                file.write(f"{message['lease']['job_id']}\n")
            _run(pipe, message)


def _run(pipe: "Connection[Any, Any]", message: dict[str, Any]) -> None:
    _say(pipe, say="progress", done=1, total=2, metrics={"loss": 0.5})
    match message["lease"]["settings"].get("do", "finish"):
        case "finish":
            _finish(pipe, message)
        case "grow":
            _kept.append(bytearray(os.urandom(64) * 1024 * 1024))
            _finish(pipe, message)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            sys.exit(3)
        case "decline":
            _say(
                pipe,
                say="failed",
                code="data_empty",
                detail="no rows",
                transient=False,
                declined=True,
                facts={"count": 0},
            )
        case "fail":
            _say(
                pipe,
                say="failed",
                code="training_failed",
                detail="loss is NaN",
                transient=False,
                declined=False,
                facts={},
            )
        case "diverge":
            _say(pipe, say="progress", done=2, total=2, metrics={"loss": float("nan"), "accuracy": 0.5})
            _finish(pipe, message)
        case "damage":
            _finish(pipe, message, damage=b"!")
        case "nonsense":
            _say(pipe, say="done", submission={})
        case "wait":
            while not pipe.poll(0.02):
                pass
            if json.loads(pipe.recv_bytes())["do"] == "cancel":
                _say(pipe, say="interrupted")
        case "ignore":
            time.sleep(300)


def _finish(pipe: "Connection[Any, Any]", message: dict[str, Any], damage: bytes = b"") -> None:
    """The update is the job's seed and what it started from; the memory is the round's number."""
    lease, folder = message["lease"], Path(message["folder"])
    instruction = Path(message["instruction"]).read_bytes() if message["instruction"] else b""
    memory = Path(message["memory"]).read_bytes() if message["memory"] else b"none"
    update = b"update %d %b %b" % (lease["seed"], instruction, memory)
    kept = b"memory %d" % lease["round_number"]
    (folder / "update.safetensors").write_bytes(update + damage)
    (folder / "memory.safetensors").write_bytes(kept)
    facts = {"digest": _digest(update), "weight": 5.0, "examples": 5, "memory_digest": _digest(kept)}
    submission = {"update": facts, "metrics": {"loss": 0.25}, "environment": {"pid": str(os.getpid())}}
    _say(pipe, say="done", submission=submission, update="update.safetensors", memory="memory.safetensors")


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _say(pipe: "Connection[Any, Any]", **message: Any) -> None:
    pipe.send_bytes(json.dumps(message).encode())
