"""Renewal of one lease while its job runs, in a thread of its own, so that a long training step does not lose it."""

import threading
from types import TracebackType

import structlog

from federated.protocol import JobProgress, Lease, RenewRequest
from worker_agent.coordinator_api.client import CoordinatorClient
from worker_agent.errors import AgentError, CoordinatorRefused, is_transient

MIN_PAUSE_SECONDS = 0.1
"""Shortest pause between renewals, however short a lease the coordinator grants."""

_log = structlog.get_logger(__name__)


class Renewal:
    """Renews the lease every third of its length inside the `with` block.

    `lease_lost` is set when the job is no longer ours. While the coordinator is away the job continues, and its
    result waits in the outbox.
    """

    def __init__(self, client: CoordinatorClient, lease: Lease, boot_id: str) -> None:
        self.lease_lost = threading.Event()
        self._stop = threading.Event()
        self._client = client
        self._lease = lease
        self._boot_id = boot_id
        self._progress: JobProgress | None = None

    def report(self, progress: JobProgress) -> None:
        """Set the progress for the next renewal, without metrics, which cover few examples while a job runs."""
        self._progress = JobProgress(done=progress.done, total=progress.total)

    def __enter__(self) -> "Renewal":
        threading.Thread(target=self._renew, name=f"renew-{self._lease.job_id}", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not joined: a pending renewal may wait for the network, and its response no longer matters.
        self._stop.set()

    def _renew(self) -> None:
        usual_seconds = max(self._lease.lease_seconds / 3, MIN_PAUSE_SECONDS)
        pause_seconds = usual_seconds
        while not self._stop.wait(pause_seconds):
            request = RenewRequest(boot_id=self._boot_id, progress=self._progress)
            try:
                self._client.renew(self._lease.job_id, request)
                pause_seconds = usual_seconds
            except AgentError as error:
                if isinstance(error, CoordinatorRefused) and not is_transient(error):
                    if not self._stop.is_set():
                        _log.warning("lease_lost", job=self._lease.job_id, reason=str(error))
                        self.lease_lost.set()
                    return
                _log.warning("lease_not_renewed", job=self._lease.job_id, reason=str(error))
                pause_seconds = usual_seconds / 4
