"""HTTP endpoints of jobs, and the one that revokes a worker.

A call that waits for a lease or for another state holds no session and no thread meanwhile.
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from coordinator.auth.principals import AnyPrincipal, OperatorPrincipal, Principal, WorkerPrincipal
from coordinator.db.batching import Batcher
from coordinator.db.sessions import WriteSession, autocommit_reads, reading, utcnow, writing
from coordinator.errors import Conflict, CoordinatorError
from coordinator.jobs import lifecycle, service
from coordinator.jobs.service import CheckResult, Renewal, Submission
from coordinator.jobs.wakeup import Offer, Watcher
from coordinator.settings import get_settings
from coordinator.web.body_limits import LARGE_BODY, PathId
from coordinator.web.etags import IfMatch
from coordinator.web.problem_details import problem_responses
from coordinator.web.routes import Route
from coordinator.web.wait_statements import Subject
from coordinator.web.waits import open_wait
from federated.protocol import (
    DeclineRequest,
    FailRequest,
    JobResponse,
    Lease,
    LeaseRequest,
    RenewRequest,
    RenewResponse,
    SubmitRequest,
)

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=Route)
revocation = APIRouter(prefix="/v1/workers", tags=["workers"], route_class=Route)
MAX_WAIT_SECONDS = 30.0
_CHANGES = problem_responses(403, 404, 409)
_NOTHING: dict[int | str, dict[str, Any]] = {204: {"description": "No job was offered while the call waited"}}


@router.post("/lease", operation_id="lease_job", response_model=Lease, responses=problem_responses(403) | _NOTHING)
async def lease_job(request: LeaseRequest, principal: WorkerPrincipal, connection: Request) -> Lease | Response:
    """Lease the next job offered to this worker, and wait for one if there is none."""
    if request.wait_seconds:
        lease = await _awaited_lease(request, principal, connection)
    else:
        lease = await _lease_now(request, principal)
    return Response(status_code=204) if lease is None else await _deliver(lease, request.boot_id, connection)


@router.post("/{job_id}/renew", operation_id="renew_job", responses=_CHANGES)
async def renew_job(job_id: PathId, request: RenewRequest, principal: WorkerPrincipal) -> RenewResponse:
    """Keep a lease and report the job's progress."""
    return await _renew((principal.id, job_id, request))


@router.post("/{job_id}/submit", operation_id="submit_job", responses=_CHANGES, openapi_extra=LARGE_BODY)
async def submit_job(job_id: PathId, request: SubmitRequest, principal: WorkerPrincipal) -> JobResponse:
    """Submit a job's result. The same result again changes nothing."""
    submission = (principal.id, job_id, request)
    check_result = await _check(submission)
    if check_result.files is not None:
        await run_in_threadpool(service.check_files, *check_result.files)
    return await _settle((submission, check_result))


@router.post("/{job_id}/fail", operation_id="fail_job", responses=_CHANGES)
def fail_job(job_id: PathId, request: FailRequest, principal: WorkerPrincipal, session: WriteSession) -> JobResponse:
    """Report that a job failed."""
    return service.fail(session, principal.id, job_id, request, utcnow())


@router.post("/{job_id}/decline", operation_id="decline_job", responses=_CHANGES)
def decline_job(
    job_id: PathId, request: DeclineRequest, principal: WorkerPrincipal, session: WriteSession
) -> JobResponse:
    """Refuse a job that the owner of the worker's node does not allow. Its client is removed."""
    return service.decline(session, principal.id, job_id, request, utcnow())


@router.get("/{job_id}", operation_id="show_job", responses=problem_responses(403, 404))
async def show_job(
    job_id: PathId,
    principal: AnyPrincipal,
    connection: Request,
    wait: Annotated[float, Query(ge=0, le=MAX_WAIT_SECONDS, description="seconds to wait for another state")] = 0,
) -> JobResponse:
    """Show a job to its worker, its client's organization and the federation's owner."""
    time = asyncio.get_running_loop().time
    until = time() + wait
    first = job = await run_in_threadpool(_show, principal, job_id)
    if not wait or first.state not in lifecycle.OPEN:
        return first
    async with open_wait(principal, Subject("job", job_id), first.state, connection) as waiting:
        while job.state == first.state and await waiting.change(until - time()):
            job = await run_in_threadpool(_show, principal, job_id)
    return job


async def _awaited_lease(request: LeaseRequest, principal: Principal, connection: Request) -> Lease | None:
    time = asyncio.get_running_loop().time
    until = time() + request.wait_seconds
    async with open_wait(principal, connection=connection) as wait:
        async with _watcher(connection).waiting(principal.id, wait.wakeup):
            wait.wakeup.clear()
            lease = await _lease_now(request, principal)
            while lease is None and await wait.change(until - time()):
                lease = await _lease((principal.id, request.boot_id))
    return lease


async def _lease_now(request: LeaseRequest, principal: Principal) -> Lease | None:
    # A read finds out whether there is anything to lease before a writing transaction begins.
    return await _lease((principal.id, request.boot_id)) if await _has_something(principal.id) else None


@revocation.delete(
    "/{worker_id}", status_code=204, operation_id="revoke_worker", responses=problem_responses(403, 404, 412)
)
def revoke_worker(
    worker_id: PathId, principal: OperatorPrincipal, session: WriteSession, if_match: IfMatch = None
) -> None:
    """Revoke a worker from its next request on. Its clients are removed and its open jobs withdrawn."""
    service.revoke_worker(session, principal, worker_id, utcnow(), if_match)


def _watcher(connection: Request) -> Watcher:
    state = connection.app.state
    if not hasattr(state, "job_watcher"):
        poll_seconds = get_settings().offer_poll_seconds
        state.job_watcher = Watcher(_newest_offer, _offers_after, service.subscribe_to_offers, poll_seconds)
    watcher: Watcher = state.job_watcher
    return watcher


def _newest_offer() -> int:
    with autocommit_reads() as connection:
        return service.newest_offer(connection)


def _offers_after(number: int) -> list[Offer]:
    with autocommit_reads() as connection:
        return list(service.offers_after(connection, number))


def _renew_all(renewals: Sequence[Renewal]) -> list[RenewResponse | CoordinatorError]:
    with writing() as session:
        return service.renew(session, renewals, utcnow())


def _have_something(worker_ids: Sequence[str]) -> list[bool]:
    with autocommit_reads() as connection:
        ids = service.workers_with_something(connection, set(worker_ids))
    return [worker_id in ids for worker_id in worker_ids]


def _lease_all(requests: Sequence[tuple[str, str]]) -> list[Lease | Conflict | None]:
    with writing() as session:
        return service.lease(session, requests, utcnow())


def _check_all(submissions: Sequence[Submission]) -> list[CheckResult | CoordinatorError]:
    with reading() as session:
        return service.check(session, submissions)


def _settle_all(submissions: Sequence[tuple[Submission, CheckResult]]) -> list[JobResponse | CoordinatorError]:
    with writing() as session:
        return service.settle(session, submissions, utcnow())


_has_something, _lease = Batcher(_have_something), Batcher(_lease_all)
_renew = Batcher(_renew_all, pause_seconds=0.2, low_priority=True)
_check, _settle = Batcher(_check_all, low_priority=True), Batcher(_settle_all, low_priority=True)


async def _deliver(lease: Lease, boot_id: str, connection: Request) -> Lease | Response:
    """The lease, unless the worker hung up meanwhile: then the job is offered again."""
    if not await connection.is_disconnected():
        return lease
    await run_in_threadpool(_hand_back, lease.job_id, boot_id)
    return Response(status_code=204)


def _hand_back(job_id: str, boot_id: str) -> None:
    with writing() as session:
        service.hand_back(session, job_id, boot_id, utcnow())


def _show(principal: Principal, job_id: str) -> JobResponse:
    with reading() as session:
        return service.show(session, principal, job_id)
