"""A node with a canary in every row and path, whose agent runs as a process with its real training child."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.support import tiny_models
from tests.support.algorithms.breaking.exceptions import CANARY
from tests.worker_agent.canaries import data_sets, models
from tests.worker_agent.recording_coordinator import RecordingCoordinator
from worker_agent.coordinator_api.identity import WorkerRecord, make_key, save_record
from worker_agent.settings import AgentSettings

ROOT = Path(__file__).resolve().parents[2]
STOP_SECONDS = 60.0
MOST_JOB_SECONDS = 30.0
CANCEL_SECONDS = 5.0
LAST_LINES = 15
POLICY = {
    "max_job_seconds": MOST_JOB_SECONDS, "max_local_steps": 50, "max_passes": 50, "max_rank": 64, "min_examples": 8,
    "min_held_out": 3, "max_download_bytes": 2**24,
}  # fmt: skip
"""What the owner of a node would set who does not trust the coordinator."""


class Node:
    """The agent's process, and what lies around it. `private`: what must not leave it."""

    def __init__(self, folder: Path, coordinator: RecordingCoordinator) -> None:
        self.home = folder / CANARY
        for name in ("", "working", "temporary", "user"):
            (self.home / name).mkdir(parents=True)
        self.log = folder / "agent.log"
        self.settings = _settings(self.home)
        key = make_key(self.settings.folder)
        names = {"organization_id": "org_1", "organization_name": "Clinic", "name": "worker"}
        save_record(self.settings.folder, WorkerRecord(url=coordinator.url, worker_id="wkr_1", **names))
        coordinator.public_key = key.public_key()
        pem = next((self.settings.folder / "identity").glob("*.pem")).read_text(encoding="ascii")
        self.private = {"a row, a name or a path": CANARY, "the private key": pem.splitlines()[1]}
        self._url = coordinator.url
        self._files = self._around()

    def start(self) -> None:
        """Starts the agent anew."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker_agent", "run"],
                env=self._environment(), cwd=self.home / "working", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def close(self) -> None:
        """Ends the agent, whatever it does."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def last_lines(self) -> str:
        """What the agent logged last."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:])

    def child_pid(self) -> int:
        """The process that trains: the largest of the agent's children. Raises psutil.NoSuchProcess."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        if not children:
            raise psutil.NoSuchProcess(self.process.pid, "training child")
        return int(max(children, key=lambda child: child.memory_info().rss).pid)

    def strays(self) -> list[str]:
        """Files that were made or changed outside the agent's folder, since the last time that this was asked."""
        before, self._files = self._files, self._around()
        return sorted(
            name for name in before.keys() | self._files.keys() if before.get(name) != self._files.get(name)
        )

    def _around(self) -> dict[str, tuple[int, int]]:
        """State by name; the agent's own folder, in which files come and go, is not entered."""
        states = {}
        for parent, folders, names in os.walk(self.home):
            folders[:] = [name for name in folders if Path(parent, name) != self.settings.folder]
            for path in (Path(parent, name) for name in names):
                with suppress(FileNotFoundError):
                    states[str(path.relative_to(self.home))] = _state(path)
        return states

    def _environment(self) -> dict[str, str]:
        ours = {name: text for name, text in os.environ.items() if not name.startswith("FEDLOOM_")}
        settings = json.loads(self.settings.model_dump_json(exclude_unset=True)) | {"url": self._url}
        own = {
            f"FEDLOOM_WORKER_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in settings.items()
        }
        places = {
            "HOME": str(self.home / "user"), "TMPDIR": str(self.home / "temporary"), "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        return ours | places | own


@contextmanager
def node(folder: Path, coordinator: RecordingCoordinator) -> Iterator[Node]:
    """Its agent is at work until the block ends."""
    made = Node(folder, coordinator)
    made.start()
    try:
        yield made
    finally:
        made.close()


def _settings(home: Path) -> AgentSettings:
    data, rows = data_sets(home / "data"), home / "data" / "instructions.jsonl"
    asked = [row | {"input": f"{row['input']} {CANARY}"} for row in tiny_models.instruction_rows(60)]
    data["instructions"] = {"path": tiny_models.write_rows(rows, asked)}
    folders: dict[str, Any] = models(home) | {"llama": tiny_models.llama_folder(home / "llama")}
    return AgentSettings(
        folder=home / "worker",
        datasets=data,
        models={name: str(path) for name, path in folders.items()},
        policy=POLICY,
        device="cpu",
        lease_wait_seconds=0,
        heartbeat_seconds=1,
        request_timeout_seconds=10,
        stop_seconds=0.5,
        cancel_seconds=CANCEL_SECONDS,
        jobs_per_executor=100_000,
        log_format="json",
    )


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
