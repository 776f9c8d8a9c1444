"""One slot of the agent: lease, policy, files, executor, outbox and delivery, for one job after the other."""

import contextlib
import math
import shutil
import threading
import time
from dataclasses import dataclass

import structlog

from federated.protocol import (
    AGENT_STOPPING,
    ARTIFACT_DAMAGED,
    DISK_FULL,
    DeclineRequest,
    FailRequest,
    FailureFacts,
    JobProgress,
    Lease,
    LeaseRequest,
    SubmitRequest,
)
from worker_agent.coordinator_api.client import CoordinatorClient
from worker_agent.coordinator_api.downloads import ArtifactCache
from worker_agent.display import Display
from worker_agent.errors import (
    AgentError,
    CorruptBytes,
    DuplicateWorker,
    LeaseInvalid,
    NoCoordinator,
    OutOfTime,
    is_disk_full,
    is_transient,
)
from worker_agent.node import approvals, policy
from worker_agent.node.capabilities import installed_algorithms
from worker_agent.node.disclosure import disclose, whereabouts
from worker_agent.runtime.delivery import LONGEST_PAUSE_SECONDS, Delivery, retrying
from worker_agent.runtime.executor import Executor, Failed, Finished, Interrupted, Task, out_of_time
from worker_agent.runtime.renewal import Renewal
from worker_agent.settings import AgentSettings
from worker_agent.storage.client_memory import MemoryChain
from worker_agent.storage.outbox import UPDATE_FILE, Outbox

MIN_POLL_SECONDS = 0.5
REST_SECONDS = {DISK_FULL: 60.0, ARTIFACT_DAMAGED: 5.0}
LEASE_INVALID = "lease_invalid"
WORTH_ANOTHER_BYTES = 1024 * 1024

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AgentContext:
    """Objects that the slots of one agent share. `hand_back`: cancel running jobs and return their leases."""

    settings: AgentSettings
    client: CoordinatorClient
    cache: ArtifactCache
    outbox: Outbox
    memory: MemoryChain
    delivery: Delivery
    display: Display
    boot_id: str
    stopping: threading.Event
    hand_back: threading.Event


class Slot:
    """Does jobs until the agent stops. `busy`: it holds a lease."""

    def __init__(self, number: int, context: AgentContext, executor: Executor) -> None:
        self.number = number
        self.executor = executor
        self.busy = False
        self._context = context
        self._rest_seconds = 0.0

    def run(self) -> None:
        """Main function of the slot's thread."""
        while not self._context.stopping.is_set():
            try:
                self._turn()
            except Exception:
                # If a fault of ours ended the slot, the agent would send heartbeats and never work.
                _log.exception("slot_broke")
                self._context.stopping.wait(LONGEST_PAUSE_SECONDS)

    def _turn(self) -> None:
        self.executor.warm_up()
        lease = self._next()
        if lease is None:
            return
        self.busy = True
        try:
            self._take(lease)
        finally:
            self.busy = False
        self._rest()

    def _rest(self) -> None:
        """Back off after a failure that would hit the next job as well, until disk space is freed or time is up."""
        seconds, self._rest_seconds = self._rest_seconds, 0.0
        until, free_bytes = time.monotonic() + seconds, self._free_bytes()
        while time.monotonic() < until and not self._context.stopping.wait(min(1.0, seconds)):
            if self._free_bytes() - free_bytes > WORTH_ANOTHER_BYTES:
                return

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self._context.settings.folder).free

    def _next(self) -> Lease | None:
        request = LeaseRequest(boot_id=self._context.boot_id, wait_seconds=self._context.settings.lease_wait_seconds)
        started_at = time.monotonic()
        try:
            lease = retrying(self._context.stopping, _worth_asking_again)(self._context.client.lease, request)
        except LeaseInvalid as error:
            self._give_back(error.job_id, Failed(LEASE_INVALID, str(error), transient=False))
            lease = None
        except DuplicateWorker:
            # The next heartbeat is refused as well and ends the agent with the reason.
            self._context.stopping.wait(LONGEST_PAUSE_SECONDS)
            return None
        except AgentError:
            return None
        if lease is None and time.monotonic() - started_at < MIN_POLL_SECONDS:
            # A coordinator that responds at once must not be polled a thousand times a second.
            self._context.stopping.wait(MIN_POLL_SECONDS)
        return lease

    def _take(self, lease: Lease) -> None:
        """Process a lease. No failure of one job ends the slot."""
        with structlog.contextvars.bound_contextvars(job=lease.job_id, kind=lease.kind, round=lease.round_number):
            try:
                self._decide(lease)
            except OutOfTime:
                late = out_of_time(self._context.settings.policy.max_job_seconds)
                self._decline(lease, late.code, late.detail, late.facts)
            except AgentError as error:
                code = ARTIFACT_DAMAGED if isinstance(error, CorruptBytes) else "coordinator_trouble"
                # This report reaches a coordinator or nobody, so another server in its place is gone by then.
                self._fail(lease, Failed(code, str(error), is_transient(error) or isinstance(error, NoCoordinator)))
            except Exception as error:
                _log.exception("job_broke")
                code = DISK_FULL if is_disk_full(error) else "agent_error"
                detail = f"{type(error).__name__}: {error}"
                self._fail(lease, Failed(code, detail, transient=True, facts=whereabouts(error)))

    def _decide(self, lease: Lease) -> None:
        if self._context.stopping.is_set():
            self._fail(lease, _STOPPING)
            return
        entry = self._context.outbox.find(lease)
        if entry is not None:
            _log.info("job_was_done_before")
            self._context.delivery.deliver(entry)
            return
        digests = approvals.approvals(self._context.settings.folder).digests
        node = policy.Node(self._context.settings, installed_algorithms(), digests)
        refusal = policy.check(lease, node)
        if refusal is not None:
            if refusal.rule == policy.NOT_APPROVED:
                self._keep_for_approval(lease)
            self._decline(lease, refusal.rule, refusal.text, refusal.facts)
            return
        self._work(lease, node)

    def _keep_for_approval(self, lease: Lease) -> None:
        """Store the request for the owner. The job is declined even if that fails."""
        try:
            approvals.keep(self._context.settings.folder, lease)
        except (OSError, AgentError) as error:
            _log.warning("request_not_kept", federation=lease.federation_id, reason=str(error))

    def _work(self, lease: Lease, node: policy.Node) -> None:
        _log.info("job_started", federation=lease.federation_id, client=lease.client_id, attempt=lease.attempt)
        until = time.monotonic() + (self._context.settings.policy.max_job_seconds or math.inf)
        self._context.display.start_job(self.number, lease)
        try:
            with Renewal(self._context.client, lease, self._context.boot_id) as renewal:
                self._execute(lease, node, renewal, until)
        finally:
            self._context.display.end_job(self.number)
            self._context.outbox.discard(lease.job_id)
            self._context.cache.trim(self._context.settings.cache_bytes, keep_files=2 * self._context.settings.slots)

    def _execute(self, lease: Lease, node: policy.Node, renewal: Renewal, until: float) -> None:
        """Run the job and handle its outcome. `until`: the deadline (monotonic) of this node for the job."""
        download = self._context.cache.fetch(lease.instruction, until) if lease.instruction is not None else None
        refusal = policy.check_instruction(download.path, node) if download else None
        if refusal is not None:
            self._decline(lease, refusal.rule, refusal.text, refusal.facts)
            return
        memory = self._context.memory.find(lease.federation_id, lease.client_id, lease.memory)
        folder = self._context.outbox.work_folder(lease.job_id)
        task = Task(lease, download.path if download else None, memory, folder)

        def report(progress: JobProgress) -> None:
            renewal.report(progress)
            self._context.display.show_progress(self.number, progress)

        def is_canceled() -> bool:
            return renewal.lease_lost.is_set() or self._context.hand_back.is_set()

        match self.executor.run(task, is_canceled, report, until):
            case Finished(submission):
                self._hand_in(task, submission, download.transferred_bytes if download else 0)
            case Failed() as failure if failure.declined:
                self._decline(lease, failure.code, failure.detail, failure.facts)
            case Failed() as failure:
                self._fail(lease, failure)
            case Interrupted():
                _log.info("job_interrupted", lease_lost=renewal.lease_lost.is_set())
                if not renewal.lease_lost.is_set():
                    self._fail(lease, _STOPPING)

    def _hand_in(self, task: Task, submission: SubmitRequest, download_bytes: int) -> None:
        update = task.folder / UPDATE_FILE
        upload_bytes = update.stat().st_size if submission.update is not None else 0
        result = submission.model_copy(update={"download_bytes": download_bytes, "upload_bytes": upload_bytes})
        entry = self._context.outbox.keep(task.lease, result)
        _log.info("job_finished", metrics=submission.metrics, seconds=submission.seconds, upload_bytes=upload_bytes)
        self._context.delivery.deliver(entry)
        if task.instruction is not None:
            self._context.memory.keep_job(task.lease, task.instruction)

    def _decline(self, lease: Lease, code: str, detail: str, facts: FailureFacts) -> None:
        outside = disclose("job_declined", code, detail, facts, lease.dataset)
        self._context.client.decline(
            lease.job_id, DeclineRequest(boot_id=self._context.boot_id, code=code, facts=outside)
        )

    def _fail(self, lease: Lease, failure: Failed) -> None:
        self._give_back(lease.job_id, failure, lease.dataset)

    def _give_back(self, job_id: str, failure: Failed, dataset: str | None = None) -> None:
        """Fail a leased job. If the report does not get through, the lease expires by itself."""
        outside = disclose("job_failed", failure.code, failure.detail, failure.facts, dataset, job=job_id)
        request = FailRequest(
            boot_id=self._context.boot_id, code=failure.code, facts=outside, transient=failure.transient
        )
        self._rest_seconds = REST_SECONDS.get(failure.code, 0.0)
        with contextlib.suppress(AgentError):
            self._context.client.fail(job_id, request)


_STOPPING = Failed(AGENT_STOPPING, "the worker agent stopped and returned the job", transient=True)


def _worth_asking_again(error: BaseException) -> bool:
    return isinstance(error, AgentError) and not isinstance(error, LeaseInvalid | DuplicateWorker)
