"""The agent: it submits finished jobs from the outbox, sends heartbeats and runs one thread for each slot.

It never imports torch.
"""

import fcntl
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import structlog

from federated.protocol import Capabilities, HeartbeatRequest
from worker_agent.coordinator_api.client import CoordinatorClient
from worker_agent.coordinator_api.connection import jitter, open_http
from worker_agent.coordinator_api.identity import Identity
from worker_agent.display import Display
from worker_agent.errors import AgentError, ConfigurationError, DuplicateWorker, is_transient
from worker_agent.node.approvals import warn_of_outdated
from worker_agent.node.capabilities import capabilities, find_device
from worker_agent.runtime.delivery import Delivery, retrying
from worker_agent.runtime.executor import CHILD_MODULE, Executor
from worker_agent.runtime.slot import AgentContext, Slot
from worker_agent.settings import AgentSettings
from worker_agent.storage.client_memory import MemoryChain
from worker_agent.storage.outbox import Outbox

POLLING_SECONDS = 0.05
MIN_PAUSE_SECONDS = 0.1
"""Shortest pause between two heartbeats, whatever the coordinator requests."""
LAST_WORDS_SECONDS = 5.0
DUPLICATE_ADVICE = (
    "the coordinator refused another agent with this worker's key: somebody has a copy of this data folder. "
    "Stop that agent and lock its copy out: stop this one, run worker-agent rotate-key, and start this one again"
)

_log = structlog.get_logger(__name__)


class Agent:
    """One run of a worker, with its own boot id, a heartbeat, and a thread for each slot."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: Identity,
        http: httpx.Client,
        display: Display,
        child_module: str = CHILD_MODULE,
    ) -> None:
        self._settings = settings
        self._stop_requests = 0
        self._duplicate_logged = False
        self._error: Exception | None = None
        stopping = threading.Event()
        self._context = _make_context(
            settings, identity, CoordinatorClient(http, identity, stopping, settings.hosts), display, stopping
        )
        executors = (Executor(settings, child_module) for _ in range(settings.slots))
        self._slots = [Slot(number, self._context, executor) for number, executor in enumerate(executors)]

    def stop(self) -> None:
        """Finish or return the leases; a second call returns them at once. Safe in a signal handler."""
        self._stop_requests += 1

    def run(self) -> None:
        """Work until `stop` is called.

        Raises AgentError if the coordinator does not know this worker at the start, and DuplicateWorker once another
        agent has taken its place.
        """
        threading.Thread(target=self._start, name="start", daemon=True).start()
        while self._stop_requests == 0 and self._error is None:
            time.sleep(POLLING_SECONDS)
        _log.info("stopping", busy_slots=sum(slot.busy for slot in self._slots))
        self._context.stopping.set()
        self._finish()
        if self._error is not None:
            raise self._error

    def _start(self) -> None:
        try:
            if self._settings.policy.approve == "ask":
                warn_of_outdated(self._settings.folder)
            self._context.outbox.open()
            leftovers = threading.Thread(target=self._deliver_leftovers, name="outbox", daemon=True)
            leftovers.start()
            own_capabilities = capabilities(self._settings, find_device(self._settings))
            # Deliver finished jobs first: after a heartbeat with the new boot id they may be offered again.
            leftovers.join(self._settings.heartbeat_seconds)
            pause_seconds = retrying(self._context.stopping, is_transient)(self._beat, own_capabilities)
            threading.Thread(target=self._keep_beating, args=(own_capabilities, pause_seconds), daemon=True).start()
            leftovers.join()
            for slot in self._slots:
                threading.Thread(target=slot.run, name=f"slot-{slot.number}", daemon=True).start()
        except Exception as error:
            # `run` raises it again, because this thread has no caller.
            self._error = error

    def _deliver_leftovers(self) -> None:
        for entry in list(self._context.outbox.entries()):
            _log.info("found_in_outbox", job=entry.job.job_id, kind=entry.job.kind, round=entry.job.round_number)
            self._context.delivery.deliver(entry)

    def _beat(self, own_capabilities: Capabilities) -> float:
        """Send one heartbeat and return the seconds until the next, as the coordinator requests."""
        request = HeartbeatRequest(boot_id=self._context.boot_id, capabilities=own_capabilities)
        response = self._context.client.heartbeat(request)
        if response.doubled_at is not None and not self._duplicate_logged:
            self._duplicate_logged = True
            _log.warning("worker_doubled", heard_at=response.doubled_at.isoformat(), reason=DUPLICATE_ADVICE)
        return max(response.heartbeat_seconds, MIN_PAUSE_SECONDS)

    def _keep_beating(self, own_capabilities: Capabilities, pause_seconds: float) -> None:
        _log.info("started", boot=self._context.boot_id, device=own_capabilities.device, slots=own_capabilities.slots)
        is_connected = True
        while not self._context.stopping.wait(jitter(pause_seconds)):
            try:
                pause_seconds = self._beat(own_capabilities)
            except DuplicateWorker as error:
                _log.error("worker_doubled", reason=str(error))
                self._error = error
                return
            except AgentError as error:
                if is_connected:
                    _log.warning("heartbeat_failed", reason=str(error))
                is_connected = False
            else:
                if not is_connected:
                    _log.info("heartbeat_back")
                is_connected = True

    def _finish(self) -> None:
        """Give running jobs `stop_seconds` to end, then return their leases, then end the executors."""
        self._wait_while_busy(self._settings.stop_seconds, lambda: self._stop_requests > 1)
        self._context.hand_back.set()
        self._wait_while_busy(self._settings.cancel_seconds + LAST_WORDS_SECONDS, lambda: False)
        for slot in self._slots:
            slot.executor.close()
        _log.info("stopped")

    def _wait_while_busy(self, seconds: float, stop_now: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        while any(slot.busy for slot in self._slots) and time.monotonic() < deadline and not stop_now():
            time.sleep(POLLING_SECONDS)


@contextmanager
def only_agent(folder: Path) -> Iterator[None]:
    """Lock the data folder for one agent. Raises ConfigurationError while another agent holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ConfigurationError(f"another worker-agent runs with the data folder {folder}") from None
    try:
        yield
    finally:
        os.close(handle)


def coordinator_url(settings: AgentSettings, identity: Identity) -> str:
    """URL of the coordinator from the settings, or else from the enrollment."""
    return str(settings.url) if "url" in settings.model_fields_set else identity.record.url


def open_worker(settings: AgentSettings, identity: Identity) -> httpx.Client:
    """The HTTP client of an enrolled worker."""
    return open_http(settings, coordinator_url(settings, identity))


def _make_context(
    settings: AgentSettings,
    identity: Identity,
    client: CoordinatorClient,
    display: Display,
    stopping: threading.Event,
) -> AgentContext:
    boot_id = uuid.uuid4().hex
    outbox, memory = Outbox(settings.folder / "outbox"), MemoryChain(settings.folder / "memory")
    return AgentContext(
        settings=settings,
        client=client,
        cache=client.cache(settings.folder / "cache"),
        outbox=outbox,
        memory=memory,
        delivery=Delivery(client, outbox, memory, boot_id, stopping, identity),
        display=display,
        boot_id=boot_id,
        stopping=stopping,
        hand_back=threading.Event(),
    )
