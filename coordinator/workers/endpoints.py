"""HTTP endpoints of workers. Revocation also ends jobs, so its endpoint is in `jobs`."""

from collections.abc import Sequence

from fastapi import APIRouter, Response

from coordinator.auth.principals import KeyPrincipal, WorkerPrincipal
from coordinator.db.batching import Batcher
from coordinator.db.sessions import ReadSession, WriteSession, utcnow, writing
from coordinator.errors import CoordinatorError
from coordinator.web.body_limits import PathId, body_of_at_most
from coordinator.web.etags import set_version
from coordinator.web.pagination import Listing, Paging
from coordinator.web.problem_details import LOCATION_HEADER, problem_responses
from coordinator.web.routes import Route
from coordinator.workers import service
from coordinator.workers.schemas import OwnWorkerResponse, WorkerResponse
from federated.protocol import (
    MAX_ENROLLMENT_BYTES,
    EnrollRequest,
    EnrollResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    RotateKeyRequest,
    RotateKeyResponse,
)


def _record_all(heartbeats: Sequence[tuple[str, HeartbeatRequest]]) -> list[HeartbeatResponse | CoordinatorError]:
    with writing() as session:
        return service.record_heartbeats(session, heartbeats, utcnow())


_record_heartbeat = Batcher(_record_all, pause_seconds=0.2, low_priority=True)
MAX_HEARTBEAT_BYTES = 256 * 1024
router = APIRouter(prefix="/v1/workers", tags=["workers"], route_class=Route)


@router.post(
    "/enroll",
    status_code=201,
    operation_id="enroll_worker",
    responses=LOCATION_HEADER | problem_responses(409),
    openapi_extra=body_of_at_most(MAX_ENROLLMENT_BYTES),
)
def enroll_worker(request: EnrollRequest, session: WriteSession, response: Response) -> EnrollResponse:
    """Enroll a worker with an enrollment token and the worker's own public key."""
    enrollment = service.enroll(session, request, utcnow())
    response.headers["Location"] = f"{router.prefix}/{enrollment.worker_id}"
    return enrollment


@router.post(
    "/me/heartbeat",
    operation_id="send_heartbeat",
    responses=problem_responses(403),
    openapi_extra=body_of_at_most(MAX_HEARTBEAT_BYTES),
)
async def send_heartbeat(request: HeartbeatRequest, principal: WorkerPrincipal) -> HeartbeatResponse:
    """Send a heartbeat, with the worker's capabilities if they changed."""
    return await _record_heartbeat((principal.id, request))


@router.post("/me/key", operation_id="rotate_worker_key", responses=problem_responses(403, 409))
def rotate_worker_key(
    request: RotateKeyRequest, principal: WorkerPrincipal, session: WriteSession
) -> RotateKeyResponse:
    """Replace the worker's signing key, effective with its next request."""
    return service.rotate_key(session, principal, request, utcnow())


@router.get("/me", operation_id="show_own_worker", responses=problem_responses(403))
def show_own_worker(principal: WorkerPrincipal, session: ReadSession) -> OwnWorkerResponse:
    """Show the calling worker, and the stores that it may contact."""
    return service.to_own_response(service.show(session, principal, principal.id), utcnow())


@router.get("", operation_id="list_workers", responses=problem_responses(400, 403))
def list_workers(principal: KeyPrincipal, session: ReadSession, page: Paging) -> Listing[WorkerResponse]:
    """List the organization's workers."""
    workers, now = service.list_for(session, principal, page), utcnow()
    return Listing(items=[service.to_response(row, now) for row in workers.rows], next_cursor=workers.next_cursor)


@router.get("/{worker_id}", operation_id="show_worker", responses=problem_responses(403, 404))
def show_worker(
    worker_id: PathId, principal: KeyPrincipal, session: ReadSession, response: Response
) -> WorkerResponse:
    """Show a worker of the organization."""
    worker = service.show(session, principal, worker_id)
    set_version(response, service.version_of(worker))
    return service.to_response(worker, utcnow())
