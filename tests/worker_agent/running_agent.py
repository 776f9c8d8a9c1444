"""An agent with the scripted child, in a thread of the test or as a process that can be killed."""

import hashlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.worker_agent.leases import make_lease
from tests.worker_agent.recording_coordinator import RecordingCoordinator
from worker_agent.coordinator_api.identity import Identity, load_identity
from worker_agent.display import NoBars, configure_logs
from worker_agent.runtime.agent import Agent, only_agent, open_worker
from worker_agent.settings import AgentSettings, load_settings

CHILD = "tests.worker_agent.scripted_child"
PATIENCE_SECONDS = 60.0


def wait_until(holds: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    """Returns when `holds()`; gives up after so many seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain"
        time.sleep(0.02)


def waiting_in_outbox(settings: AgentSettings) -> list[str]:
    """Names of the finished jobs that the agent has not handed over; read while it runs, so nothing is opened."""
    return sorted(path.name for path in (settings.folder / "outbox").iterdir() if path.name != ".work")


def digest_of(content: bytes) -> str:
    """As in the protocol."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def offer(coordinator: RecordingCoordinator, do: str = "finish", **fields: Any) -> None:
    """Have the coordinator offer a job that the scripted child does as told."""
    lease = make_lease(settings={"do": do}, **fields)
    coordinator.offers.append(lease.model_dump(mode="json"))


def jobs_done(settings: AgentSettings) -> list[str]:
    """Ids of the jobs that the scripted child began, in order."""
    file = settings.folder / "jobs-done"
    return file.read_text().split() if file.exists() else []


@contextmanager
def running(
    settings: AgentSettings, identity: Identity, http: httpx.Client, child_module: str = CHILD
) -> Iterator[Agent]:
    """An agent at work in a thread; stopped at the end."""
    settings.folder.mkdir(exist_ok=True)
    agent = Agent(settings, identity, http, NoBars(), child_module)
    thread = threading.Thread(target=agent.run)
    thread.start()
    try:
        yield agent
    finally:
        agent.stop()
        thread.join()


def main() -> None:
    """`python -m tests.worker_agent.running_agent`: settings come from FEDLOOM_WORKER_CONFIG."""
    configure_logs(terminal=False)
    settings = load_settings()
    identity = load_identity(settings.folder)
    with only_agent(settings.folder), open_worker(settings, identity) as http:
        agent = Agent(settings, identity, http, NoBars(), CHILD)
        signal.signal(signal.SIGTERM, lambda *_: agent.stop())
        agent.run()
    sys.stdout.write("ended\n")


if __name__ == "__main__":
    main()
