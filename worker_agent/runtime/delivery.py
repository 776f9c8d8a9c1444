"""Delivery of finished jobs: store the memory, upload the update, sign and submit the result, remove the entry.

The update is signed only now, because the key may have changed while the entry lay in the outbox. Each step may be
repeated after a crash without harm, so the entry is the only record of progress.
"""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception, sleep_using_event

from federated.protocol import FailRequest
from worker_agent.coordinator_api.client import CoordinatorClient
from worker_agent.coordinator_api.connection import wait_retry_after
from worker_agent.coordinator_api.identity import Identity
from worker_agent.errors import (
    AgentError,
    BodyTooLarge,
    CoordinatorRefused,
    CorruptBytes,
    LeaseLost,
    NoCoordinator,
    NotAuthorized,
    NotThere,
    RoundClosed,
    is_disk_full,
    is_transient,
)
from worker_agent.node.disclosure import disclose
from worker_agent.storage.client_memory import MemoryChain
from worker_agent.storage.outbox import MEMORY_FILE, Entry, Outbox

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0

_log = structlog.get_logger(__name__)


def retrying(stopping: threading.Event, should_retry: Callable[[BaseException], bool]) -> Retrying:
    """Retries with growing random pauses of at most 30 s, until `stopping` is set."""

    def log_retry(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        again_in_seconds = round(state.next_action.sleep, 1) if state.next_action is not None else 0.0
        _log.warning(_event(error), reason=str(error), again_in_seconds=again_in_seconds)

    return Retrying(
        retry=retry_if_exception(lambda error: not stopping.is_set() and should_retry(error)),
        wait=wait_retry_after(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS),
        sleep=sleep_using_event(stopping),
        before_sleep=log_retry,
        reraise=True,
    )


def _event(error: BaseException | None) -> str:
    if isinstance(error, NoCoordinator):
        return "no_coordinator"
    return "coordinator_away" if isinstance(error, AgentError) else "disk_full"


@dataclass(frozen=True, slots=True)
class Delivery:
    """Delivery of finished jobs from the outbox to the coordinator."""

    client: CoordinatorClient
    outbox: Outbox
    memory: MemoryChain
    boot_id: str
    stopping: threading.Event
    identity: Identity

    def deliver(self, entry: Entry) -> None:
        """Submit one finished job; wait while the coordinator is away. Never raises AgentError.

        The entry stays in the outbox while it may still be needed: when the agent stops, and after a lost lease of a
        job that may be offered to this worker again.
        """
        try:
            retrying(self.stopping, _may_pass)(self._hand_in, entry)
        except (LeaseLost, NotAuthorized) as error:
            self._keep_if_needed(entry, error)
        except RoundClosed as error:
            _log.warning("submission_too_late", job=entry.job.job_id, reason=str(error))
            self.outbox.remove(entry)
        except CoordinatorRefused as error:
            self._give_up(entry, "result_refused", error, transient=False)
        except BodyTooLarge as error:
            self._give_up(entry, "upload_too_large_for_proxy", error, transient=False)
        except (CorruptBytes, OSError) as error:
            if is_disk_full(error):
                _log.warning("submission_waits", job=entry.job.job_id, reason=str(error))
                return
            self._give_up(entry, "result_damaged", error, transient=True)
        except AgentError as error:
            _log.warning("submission_waits", job=entry.job.job_id, reason=str(error))

    def _hand_in(self, entry: Entry) -> None:
        job, submission = entry.job, entry.job.submission
        update = submission.update
        if update is not None:
            if update.memory_digest is not None:
                self.memory.keep(job.federation_id, job.client_id, entry.folder / MEMORY_FILE, update.memory_digest)
            self.client.upload(entry.update, update.digest)
            signed_update = update.model_copy(
                update={"signature": self.identity.sign(job.statement(update).encode())}
            )
            submission = submission.model_copy(update={"update": signed_update})
        response = self.client.submit(job.job_id, submission)
        self.outbox.remove(entry)
        _log.info("job_submitted", job=job.job_id, kind=job.kind, round=job.round_number, state=response.state)

    def _keep_if_needed(self, entry: Entry, error: CoordinatorRefused) -> None:
        _log.warning("submission_kept", job=entry.job.job_id, reason=str(error))
        if isinstance(error, LeaseLost):
            with contextlib.suppress(AgentError):
                if not self._still_open(entry.job.job_id):
                    self.outbox.remove(entry)

    def _still_open(self, job_id: str) -> bool:
        try:
            return self.client.show(job_id).state in {"offered", "leased"}
        except NotThere:
            return False

    def _give_up(self, entry: Entry, code: str, error: Exception, transient: bool) -> None:
        """Fail a job whose result the coordinator will never accept, so that it does not wait for its deadline."""
        outside = disclose("submission_given_up", code, str(error), job=entry.job.job_id)
        request = FailRequest(boot_id=self.boot_id, code=code, facts=outside, transient=transient)
        with contextlib.suppress(AgentError):
            self.client.fail(entry.job.job_id, request)
        self.outbox.remove(entry)


def _may_pass(error: BaseException) -> bool:
    """Whether to wait and retry: for the network, the coordinator, its correct address, or space on this disk.

    Corrupt bytes stay corrupt, so the job has to be repeated. A body too large for a proxy stays too large.
    """
    if isinstance(error, CorruptBytes | BodyTooLarge):
        return False
    return is_transient(error) or isinstance(error, NoCoordinator) or is_disk_full(error)
