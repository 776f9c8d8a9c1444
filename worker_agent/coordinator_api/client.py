"""Client for the part of the coordinator's HTTP API that a worker uses.

Calls that may be sent twice without harm are retried here (see `Connection.retrying`). Enrolling, failing and
declining are retried because they carry an `Idempotency-Key`: the coordinator executes them once and repeats its
response. Leasing is retried only if the request was never sent: the next call returns the lease of a lost response.
All errors are those of `worker_agent.errors`.
"""

import hashlib
import threading
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from federated.protocol import (
    ArtifactReference,
    DeclineRequest,
    EnrollRequest,
    EnrollResponse,
    FailRequest,
    HeartbeatRequest,
    HeartbeatResponse,
    JobResponse,
    Lease,
    LeaseRequest,
    OwnWorker,
    ProtocolResponse,
    RenewRequest,
    RenewResponse,
    RotateKeyRequest,
    RotateKeyResponse,
    SubmitRequest,
)
from worker_agent.coordinator_api.connection import Clock, Connection
from worker_agent.coordinator_api.downloads import ArtifactCache
from worker_agent.coordinator_api.identity import Identity
from worker_agent.coordinator_api.responses import check_values, parse
from worker_agent.coordinator_api.uploads import upload
from worker_agent.errors import LeaseInvalid
from worker_agent.storage.file_names import file_name

IDEMPOTENCY_HEADER = "Idempotency-Key"
LONG_POLL_MARGIN_SECONDS = 15.0

_Model = TypeVar("_Model", bound=BaseModel)


class CoordinatorClient:
    """Calls of one worker, for any number of threads. The caller closes `http`.

    `hosts`: origins besides the coordinator's that transfers may use.
    """

    def __init__(
        self,
        http: httpx.Client,
        identity: Identity | None,
        stopping: threading.Event | None = None,
        hosts: Collection[str] = (),
    ) -> None:
        self._connection = Connection(http, identity, stopping, hosts)
        self._http = http

    @property
    def clock(self) -> Clock:
        """The coordinator's clock as known so far."""
        return self._connection.clock

    def enroll(self, request: EnrollRequest) -> EnrollResponse:
        """Enroll. This uses up the token; the same request from another process gets the same response."""
        key = hashlib.sha256(request.model_dump_json().encode()).hexdigest()
        return self._once("/v1/workers/enroll", EnrollResponse, request, key)

    def rotate_key(self, request: RotateKeyRequest) -> RotateKeyResponse:
        """Replace the key. NotAuthorized may mean that an earlier attempt succeeded."""
        return self._connection.call(
            "POST", "/v1/workers/me/key", RotateKeyResponse, repeat=True, json=_json(request)
        )

    def heartbeat(self, request: HeartbeatRequest) -> HeartbeatResponse:
        """Report that this worker is alive, and its capabilities."""
        path = "/v1/workers/me/heartbeat"
        return self._connection.call("POST", path, HeartbeatResponse, repeat=True, json=_json(request))

    def lease(self, request: LeaseRequest) -> Lease | None:
        """A job, or None if none was offered within `request.wait_seconds`. Raises LeaseInvalid."""
        timeout = self._long_poll(request.wait_seconds)
        path = "/v1/jobs/lease"
        response = self._connection.send("POST", path, repeat=False, json=_json(request), timeout=timeout)
        return None if response.status_code == 204 else _lease(response)

    def renew(self, job_id: str, request: RenewRequest) -> RenewResponse:
        """Renew a lease. Raises LeaseLost."""
        return self._connection.call("POST", _job(job_id, "renew"), RenewResponse, repeat=True, json=_json(request))

    def submit(self, job_id: str, request: SubmitRequest) -> JobResponse:
        """Submit the result of a job. Raises RoundClosed, LeaseLost, CoordinatorRefused naming a tensor (422)."""
        return self._connection.call("POST", _job(job_id, "submit"), JobResponse, repeat=True, json=_json(request))

    def fail(self, job_id: str, request: FailRequest) -> JobResponse:
        """Return a job with the reason for its failure."""
        return self._once(_job(job_id, "fail"), JobResponse, request, uuid.uuid4().hex)

    def decline(self, job_id: str, request: DeclineRequest) -> JobResponse:
        """Decline a job that the owner of this node does not allow, or that data or model do not suit."""
        return self._once(_job(job_id, "decline"), JobResponse, request, uuid.uuid4().hex)

    def show(self, job_id: str, wait_seconds: float = 0.0) -> JobResponse:
        """The current state of a job; waits up to `wait_seconds` for a change."""
        wait = {"wait": wait_seconds} if wait_seconds else None
        timeout = self._long_poll(wait_seconds)
        return self._connection.call("GET", _job(job_id), JobResponse, repeat=True, params=wait, timeout=timeout)

    def upload(self, source: Path, digest: str) -> ArtifactReference:
        """Send an artifact in chunks; see `uploads.upload`."""
        return upload(self._connection, source, digest)

    def cache(self, folder: Path) -> ArtifactCache:
        """Downloads of artifacts, kept in `folder`."""
        return ArtifactCache(self._connection, folder)

    def probe(self) -> None:
        """Check that the service is up, without identification."""
        self._connection.send("GET", "/healthz", repeat=False)

    def who_am_i(self) -> OwnWorker:
        """This worker as the coordinator knows it. Raises NotAuthorized if it does not."""
        return self._connection.call("GET", "/v1/workers/me", OwnWorker, repeat=False)

    def _once(self, path: str, response_type: type[_Model], request: BaseModel, key: str) -> _Model:
        """A POST that is retried with one key, so that it is executed once."""
        headers = {IDEMPOTENCY_HEADER: key}
        return self._connection.call("POST", path, response_type, repeat=True, json=_json(request), headers=headers)

    def _long_poll(self, wait_seconds: float) -> httpx.Timeout:
        usual = self._http.timeout
        read_seconds = max(usual.read or 0.0, wait_seconds + LONG_POLL_MARGIN_SECONDS)
        return httpx.Timeout(connect=usual.connect, read=read_seconds, write=usual.write, pool=usual.pool)


def _json(request: BaseModel) -> object:
    return request.model_dump(mode="json")


def _lease(response: httpx.Response) -> Lease:
    """The lease in a response. Raises LeaseInvalid if the job cannot be read, NotUnderstood if there is none."""
    check_values(response)
    try:
        return Lease.model_validate_json(response.content)
    except ValidationError as error:
        job = parse(response, _NamedJob)
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['type']}" for fault in error.errors()[:8]]
        raise LeaseInvalid(file_name(job.job_id), f"the lease cannot be read: {'; '.join(faults)}") from None


class _NamedJob(ProtocolResponse):
    job_id: str


def _job(job_id: str, call: str = "") -> str:
    return f"/v1/jobs/{file_name(job_id)}" + (f"/{call}" if call else "")
