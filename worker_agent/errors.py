"""Errors of the agent, as one tree. The names say what a caller can do about them.

AgentError
├── ConfigurationError            settings, key or data folder: the owner of this node must change something
│   └── NotEnrolled               this data folder belongs to no worker yet
├── CoordinatorAway               no usable response: refused, timed out, cut off, 429, 502, 503, 504, or a proxy's
│   ├── NoCoordinator             something else responds: a redirect, a web page, a proxy's refusal; needs a fix
│   │   └── BodyTooLarge           a proxy accepts no body of this size
│   └── StoreAway                 the same for the coordinator's store; the coordinator can relay the transfer
├── CoordinatorRefused            a response with a reason: status, code, detail, tensor
│   ├── NotAuthorized             401, 403: unknown, revoked or not allowed
│   ├── NotThere                  404: no such job, upload or artifact, or not for this worker
│   ├── LeaseLost                 409 lease_lost: the job is no longer this worker's
│   ├── DuplicateWorker           409 worker_doubled: another agent runs with this worker's key, and started later
│   └── RoundClosed               409 round_closed: too late, the update is no longer needed
├── NotUnderstood                 a response outside the protocol: another version, or not a coordinator
│   └── LeaseInvalid              a job with an unreadable definition; names the job, so that it can be returned
├── CorruptBytes                  bytes arrived that were not announced: another SHA-256, more, or different ones
└── OutOfTime                     a transfer missed its deadline
"""

import errno
from typing import ClassVar

from federated.protocol import WORKER_DOUBLED, Problem

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class AgentError(Exception):
    """Base of all errors of the agent. The text says what is wrong and what to do."""

    exit_status: ClassVar[int] = 1
    """Exit status of a command that ends with this error."""


class ConfigurationError(AgentError):
    """The owner of this node must change something before it can go on."""


class NotEnrolled(ConfigurationError):
    """The data folder contains no worker; `worker-agent enroll` creates one."""


class CoordinatorAway(AgentError):
    """No usable response. `never_sent`: the request did not reach the coordinator, so any call may be repeated.

    `retry_after_seconds`: as the coordinator requested, or None.
    """

    def __init__(self, detail: str, *, never_sent: bool = False, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.never_sent = never_sent
        self.retry_after_seconds = retry_after_seconds


class NoCoordinator(CoordinatorAway):
    """Something other than a coordinator responds, and waiting does not help. The text says who must change what.

    A finished job still waits in the outbox, because the address may be fixed while the agent runs.
    """


class BodyTooLarge(NoCoordinator):
    """A proxy in front of the coordinator refuses a body because of its size."""


class StoreAway(CoordinatorAway):
    """No usable response from the coordinator's store."""


class CoordinatorRefused(AgentError):
    """The coordinator responded with a problem document."""

    def __init__(self, problem: Problem, request_id: str | None = None) -> None:
        request_text = "" if request_id is None else f" (request {request_id})"
        super().__init__(f"{problem.status} {problem.code or problem.title}: {_reason(problem)}{request_text}")
        self.status = problem.status
        self.code = problem.code
        self.detail = _reason(problem)
        self.tensor = problem.tensor


class NotAuthorized(CoordinatorRefused):
    """The coordinator does not know this worker's key, or the key was revoked."""


class NotThere(CoordinatorRefused):
    """The resource does not exist, or not for this worker."""


class LeaseLost(CoordinatorRefused):
    """The job now belongs to another lease."""


class DuplicateWorker(CoordinatorRefused):
    """Another agent with this worker's key connected after this one. Restarting this one would stop that one."""

    exit_status = 3


class RoundClosed(CoordinatorRefused):
    """The round ended without this update."""


class NotUnderstood(AgentError):
    """A response outside the protocol."""


class LeaseInvalid(NotUnderstood):
    """A leased job that cannot be read. The text names the fields and repeats none of their values."""

    def __init__(self, job_id: str, detail: str) -> None:
        super().__init__(detail)
        self.job_id = job_id


class CorruptBytes(AgentError):
    """Downloaded bytes do not have the announced number or digest."""


class OutOfTime(AgentError):
    """A transfer missed its caller's deadline."""


def refusal(problem: Problem, request_id: str | None = None) -> CoordinatorRefused:
    """The error for a problem document, by its code and then by its status.

    `request_id`: the id of the request in the coordinator's log.
    """
    by_code: dict[str, type[CoordinatorRefused]] = {
        "lease_lost": LeaseLost,
        "round_closed": RoundClosed,
        WORKER_DOUBLED: DuplicateWorker,
    }
    by_status: dict[int, type[CoordinatorRefused]] = {401: NotAuthorized, 403: NotAuthorized, 404: NotThere}
    return by_code.get(problem.code, by_status.get(problem.status, CoordinatorRefused))(problem, request_id)


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed because the disk is full or a quota is exhausted."""
    return isinstance(error, OSError) and error.errno in _FULL


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later although nobody changes anything."""
    if isinstance(error, CoordinatorRefused):
        return error.status >= 500
    return isinstance(error, CoordinatorAway | CorruptBytes) and not isinstance(error, NoCoordinator)


def _reason(problem: Problem) -> str:
    fields = "; ".join(
        f"{error.get('pointer', '')} {error.get('detail', '')}".strip() for error in problem.errors[:8]
    )
    return f"{problem.detail or problem.title}{f' ({fields})' if fields else ''}"
