"""Every error the agent raises, one tree; the names say what a caller can do about it.

AgentError
├── ConfigurationError            settings, key or data folder: the owner of this node must change something
│   └── NotEnrolled               this data folder belongs to no worker yet
├── CoordinatorAway               no usable answer: refused, timed out, broken off, 429, 502, 503, 504, or a proxy's
│   ├── NoCoordinator             something else answers: a redirect, a web page, a proxy's refusal; to be mended
│   │   └── BodyTooLarge           a proxy takes no body of this size
│   └── StoreAway                 the same of the coordinator's store: there is the way through the coordinator
├── CoordinatorRefused            an answer with a reason: carries status, code, detail, tensor
│   ├── NotAuthorized             401, 403: unknown, revoked or not allowed
│   ├── NotThere                  404: no such job, upload or artifact, or not for this worker
│   ├── LeaseLost                 409 lease_lost: the job is no longer this worker's
│   ├── DuplicateWorker             409 worker_doubled: another agent runs with this worker's key, and came later
│   └── RoundClosed               409 round_closed: too late, the update is not needed any more
├── NotUnderstood                 an answer that is not what the protocol says: another version, or not a coordinator
│   └── LeaseInvalid              a job whose definition is not one: it names the job, so that it can be given back
├── CorruptBytes                  bytes came that are not the announced ones: another SHA-256, more, or other ones
└── OutOfTime                     what was to be here by a certain time is not
"""

from typing import ClassVar

from federated.protocol import WORKER_DOUBLED, Problem


class AgentError(Exception):
    """Base of all errors of the agent. The text says what was wrong and what to do."""

    exit_status: ClassVar[int] = 1
    """Of a command that ends with it."""


class ConfigurationError(AgentError):
    """The owner of this node must change something before it can go on."""


class NotEnrolled(ConfigurationError):
    """The data folder holds no worker; `worker-agent enroll` makes one."""


class CoordinatorAway(AgentError):
    """No usable answer. `never_sent`: the request did not reach the coordinator, so that any call may be repeated.

    `retry_after_seconds` is what the coordinator asked for, or None.
    """

    def __init__(self, detail: str, *, never_sent: bool = False, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.never_sent = never_sent
        self.retry_after_seconds = retry_after_seconds


class NoCoordinator(CoordinatorAway):
    """What answers is no coordinator, and waiting does not make it one. The text says who must change what.

    A finished job waits for that in the outbox all the same: the address may be mended while the agent runs.
    """


class BodyTooLarge(NoCoordinator):
    """A proxy before the coordinator refuses a body for its size."""


class StoreAway(CoordinatorAway):
    """No usable answer of the coordinator's store."""


class CoordinatorRefused(AgentError):
    """The coordinator answered with a problem document."""

    def __init__(self, problem: Problem, request_id: str | None = None) -> None:
        request_text = "" if request_id is None else f" (request {request_id})"
        super().__init__(f"{problem.status} {problem.code or problem.title}: {_reason(problem)}{request_text}")
        self.status = problem.status
        self.code = problem.code
        self.detail = _reason(problem)
        self.tensor = problem.tensor


class NotAuthorized(CoordinatorRefused):
    """The coordinator does not know this worker's key, or it was revoked."""


class NotThere(CoordinatorRefused):
    """No such thing, or not for this worker."""


class LeaseLost(CoordinatorRefused):
    """The job belongs to another lease by now."""


class DuplicateWorker(CoordinatorRefused):
    """Another agent with this worker's key was heard after this one. Starting this one again would stop that one."""

    exit_status = 3


class RoundClosed(CoordinatorRefused):
    """The round ended without this update."""


class NotUnderstood(AgentError):
    """An answer outside the protocol."""


class LeaseInvalid(NotUnderstood):
    """A leased job that cannot be read; the text names the fields, and repeats nothing of what came."""

    def __init__(self, job_id: str, detail: str) -> None:
        super().__init__(detail)
        self.job_id = job_id


class CorruptBytes(AgentError):
    """Downloaded bytes do not have the announced number or digest."""


class OutOfTime(AgentError):
    """A transfer was not done by the time that its caller gave it."""


def refusal(problem: Problem, request_id: str | None = None) -> CoordinatorRefused:
    """The error for a problem document, by its code and then by its status.

    `request_id`: under which the coordinator's log has it.
    """
    by_code: dict[str, type[CoordinatorRefused]] = {
        "lease_lost": LeaseLost,
        "round_closed": RoundClosed,
        WORKER_DOUBLED: DuplicateWorker,
    }
    by_status: dict[int, type[CoordinatorRefused]] = {401: NotAuthorized, 403: NotAuthorized, 404: NotThere}
    return by_code.get(problem.code, by_status.get(problem.status, CoordinatorRefused))(problem, request_id)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later without anybody changing anything."""
    if isinstance(error, CoordinatorRefused):
        return error.status >= 500
    return isinstance(error, CoordinatorAway | CorruptBytes) and not isinstance(error, NoCoordinator)


def _reason(problem: Problem) -> str:
    fields = "; ".join(f"{bad.get('pointer', '')} {bad.get('detail', '')}".strip() for bad in problem.errors[:8])
    return f"{problem.detail or problem.title}{f' ({fields})' if fields else ''}"
