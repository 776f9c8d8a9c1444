"""Worker service: enrollment with a token, heartbeats, key rotation and revocation.

`jobs.revoke_worker` ends the clients and jobs of a revoked worker.
"""

from base64 import urlsafe_b64encode
from collections.abc import Collection, Sequence
from datetime import datetime

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy.orm import Session

from coordinator import audit
from coordinator.auth.credentials import is_signature_valid, read_public_key
from coordinator.auth.principals import NOT_YOURS, Principal, require_role
from coordinator.db.batching import map_errors
from coordinator.db.sessions import lock_row
from coordinator.errors import Conflict, CoordinatorError, FieldError, NotFound, Unprocessable
from coordinator.models import Worker, WorkerKey
from coordinator.models.base import new_id
from coordinator.organizations import service as organizations
from coordinator.settings import get_settings
from coordinator.web import etags
from coordinator.web.pagination import Page, PageRequest
from coordinator.workers import lifecycle, repository
from coordinator.workers.schemas import OwnWorkerResponse, WorkerResponse
from federated.protocol import (
    WORKER_DOUBLED,
    Capabilities,
    EnrollRequest,
    EnrollResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    RotateKeyRequest,
    RotateKeyResponse,
)
from federated.signed_statement import enrollment_message, key_id, rotation_message


def enroll(session: Session, request: EnrollRequest, now: datetime) -> EnrollResponse:
    """Enrolls a worker in the token's organization. The same key and name return the same worker, without a use.

    Raises Unauthenticated (the token), Unprocessable (the key, its proof), Conflict (name or key are taken).
    """
    token = organizations.find_token(session, request.token)
    public_key = _canonical_key(request.public_key)
    _check_proof(request, enrollment_message(request.token, request.name, request.public_key))
    worker = repository.by_public_key(session, public_key)
    if worker is None:
        _check_unused(session, public_key)
        organizations.use_token(token, now)
        _free_the_name(session, token.organization_id, request.name)
        worker = Worker(
            id=new_id("wkr"), organization_id=token.organization_id, name=request.name, public_key=public_key,
            capabilities=request.capabilities.model_dump(mode="json"), created_at=now,
        )  # fmt: skip
        session.add(worker)
        session.flush()
        _remember_key(session, worker, now)
        facts = {"name": worker.name, "key_id": key_id(public_key), "enrollment_token": token.id}
        audit.append(session, worker.id, "worker.enrolled", worker.id, [worker.organization_id], **facts)
    elif (worker.organization_id, worker.name, worker.revoked_at) != (token.organization_id, request.name, None):
        raise _key_taken()
    return EnrollResponse(
        worker_id=worker.id,
        organization_id=worker.organization_id,
        organization_name=organizations.show(session, worker.organization_id).name,
        heartbeat_seconds=get_settings().heartbeat_seconds,
    )


def _canonical_key(public_key: str) -> str:
    try:
        raw = read_public_key(public_key).public_bytes(Encoding.Raw, PublicFormat.Raw)
    except ValueError as error:
        raise _invalid_field("public_key", str(error)) from None
    return urlsafe_b64encode(raw).decode().rstrip("=")


def _check_proof(request: EnrollRequest | RotateKeyRequest, message: bytes) -> None:
    """Requires a signature by the private key, so that nobody registers another's public key."""
    if request.proof is None:
        raise _invalid_field("proof", "is missing: this worker agent is older than the coordinator; upgrade it")
    if not is_signature_valid(request.public_key, request.proof, message):
        raise _invalid_field("proof", "is not a signature of this request by `public_key`")


def _invalid_field(field: str, detail: str) -> Unprocessable:
    fault = FieldError(pointer=f"/{field}", detail=detail)
    return Unprocessable(f"{field}_invalid", f"`{field}`: {detail}.", errors=[fault])


def rotate_key(session: Session, principal: Principal, request: RotateKeyRequest, now: datetime) -> RotateKeyResponse:
    """Replaces the worker's key, effective with its next request. Older signatures stay valid.

    Another agent with the old key can no longer authenticate, which ends a doubled worker. Raises Unprocessable (the
    key, its proof), Conflict (the key was used before).
    """
    worker = _existing(lock_row(session, Worker, principal.id))
    public_key = _canonical_key(request.public_key)
    _check_proof(request, rotation_message(worker.id, request.public_key))
    if public_key != worker.public_key:
        _check_unused(session, public_key)
        repository.retire_keys(session, worker.id, now)
        worker.public_key, worker.doubled_at = public_key, None
        _remember_key(session, worker, now)
        audience = [worker.organization_id]
        audit.append(session, worker.id, "worker.key_rotated", worker.id, audience, key_id=key_id(public_key))
    return RotateKeyResponse(key_id=key_id(public_key))


def _check_unused(session: Session, public_key: str) -> None:
    if session.get(WorkerKey, key_id(public_key)) is not None:
        raise _key_taken()


def _key_taken() -> Conflict:
    return Conflict("public_key_taken", "This public key was used before. Make a new key pair.")


def _remember_key(session: Session, worker: Worker, now: datetime) -> None:
    key = WorkerKey(id=key_id(worker.public_key), worker_id=worker.id, public_key=worker.public_key, created_at=now)
    session.add(key)
    session.flush()


def _free_the_name(session: Session, organization_id: str, name: str) -> None:
    """A revoked worker gives its name away; the others keep theirs."""
    namesake = repository.by_name(session, organization_id, name)
    if namesake is None:
        return
    if namesake.revoked_at is None:
        raise Conflict(
            "worker_name_taken", f"The organization has a worker named {name!r}; revoke it or choose another."
        )
    namesake.name = f"{name} ({namesake.id})"
    session.flush()


def lock(session: Session, worker_ids: Collection[str]) -> dict[str, Worker]:
    """The workers with these ids, locked."""
    return {worker.id: worker for worker in repository.lock(session, worker_ids)}


def record_heartbeats(
    session: Session, heartbeats: Sequence[tuple[str, HeartbeatRequest]], now: datetime
) -> list[HeartbeatResponse | CoordinatorError]:
    """Records heartbeats, pairs of worker id and request, with new capabilities if a request has any.

    The result is NotFound for an unknown worker, Conflict (`worker_doubled`) for an agent replaced by another one.
    """
    workers = lock(session, {worker_id for worker_id, _ in heartbeats})
    return map_errors(heartbeats, lambda one: _record_heartbeat(session, _existing(workers.get(one[0])), one[1], now))


def _record_heartbeat(
    session: Session, worker: Worker, request: HeartbeatRequest, now: datetime
) -> HeartbeatResponse | Conflict:
    if (refusal := refusal_of(worker, request.boot_id)) is not None:
        _note_double(session, worker, request.boot_id, now)
        return refusal
    if worker.boot_id not in (None, request.boot_id):
        worker.replaced_boots = lifecycle.with_replaced(worker.replaced_boots, str(worker.boot_id))
    worker.last_seen_at, worker.boot_id = now, request.boot_id
    capabilities = (
        worker.capabilities if request.capabilities is None else request.capabilities.model_dump(mode="json")
    )
    if capabilities != worker.capabilities:
        worker.capabilities = capabilities
    pause_seconds = get_settings().heartbeat_seconds
    return HeartbeatResponse(server_time=now, heartbeat_seconds=pause_seconds, doubled_at=worker.doubled_at)


def refusal_of(worker: Worker, boot_id: str) -> Conflict | None:
    """The error for an agent that a later one with the same key has replaced; None if it is the current one."""
    if not lifecycle.is_replaced(worker, boot_id):
        return None
    detail = (
        f"Another agent with the key of worker {worker.id} started after this one: two agents run with one key. "
        "This one is refused; enroll it as a separate worker."
    )
    return Conflict(WORKER_DOUBLED, detail)


def _note_double(session: Session, worker: Worker, boot_id: str, now: datetime) -> None:
    """Records the time of the replaced agent's last heartbeat, and once an audit entry with both boot ids."""
    earlier, present = list(worker.replaced_boots or ()), str(worker.boot_id)
    worker.doubled_at, worker.replaced_boots = now, lifecycle.with_double(earlier, boot_id, present)
    if worker.replaced_boots != earlier:
        facts = {"name": worker.name, "refused_boot_id": boot_id, "present_boot_id": present}
        audit.append(session, audit.COORDINATOR, "worker.doubled", worker.id, [worker.organization_id], **facts)


def alive(session: Session, worker_ids: Collection[str], now: datetime) -> set[str]:
    """Ids of the workers that are not revoked and sent a heartbeat within `worker_timeout_seconds`."""
    return repository.alive(session, worker_ids, lifecycle.silent_before(now, get_settings().worker_timeout_seconds))


def show(session: Session, principal: Principal, worker_id: str) -> Worker:
    """The worker, for keys of its organization, for itself and for admins. Raises NotFound."""
    worker = _existing(session.get(Worker, worker_id))
    require_role(principal, "owner", "operator", "viewer", "worker", organization_id=worker.organization_id)
    if principal.role == "worker" and principal.id != worker.id:
        raise _not_found()
    return worker


def list_for(session: Session, principal: Principal, page: PageRequest) -> Page[Worker]:
    """The organization's workers; all workers for an admin."""
    return repository.workers(session, page, None if principal.role == "admin" else principal.organization_id)


def version_of(worker: Worker) -> str:
    """Version for conditional requests. Changes with name, capabilities and revocation, not with heartbeats."""
    return etags.version_of(worker.name, worker.capabilities, worker.revoked_at)


def revoke(
    session: Session, principal: Principal, worker_id: str, now: datetime, if_match: str | None = None
) -> Worker:
    """Revokes the worker, effective with its next request. Revoking twice is no error.

    Raises NotFound, Forbidden, PreconditionFailed.
    """
    worker = _existing(lock_row(session, Worker, worker_id))
    require_role(principal, "owner", "operator", organization_id=worker.organization_id)
    etags.check_match(if_match, version_of(worker))
    if worker.revoked_at is None:
        worker.revoked_at = now
        audit.append(session, principal.id, "worker.revoked", worker.id, [worker.organization_id], name=worker.name)
    return worker


def capabilities_of(worker: Worker) -> Capabilities:
    """Capabilities from the latest heartbeat, without fields that only an earlier version knew."""
    return Capabilities.model_validate(worker.capabilities, extra="ignore")


def to_response(worker: Worker, now: datetime) -> WorkerResponse:
    """The worker's API response."""
    return WorkerResponse(
        id=worker.id,
        organization_id=worker.organization_id,
        name=worker.name,
        state=lifecycle.state_of(worker, now, get_settings().worker_timeout_seconds),
        capabilities=capabilities_of(worker),
        last_seen_at=worker.last_seen_at,
        created_at=worker.created_at,
        revoked_at=worker.revoked_at,
        doubled_at=worker.doubled_at,
    )


def to_own_response(worker: Worker, now: datetime) -> OwnWorkerResponse:
    """The API response for the worker itself."""
    return OwnWorkerResponse(**dict(to_response(worker, now)), store_origins=get_settings().store_origins)


def _existing(worker: Worker | None) -> Worker:
    if worker is None:
        raise _not_found()
    return worker


def _not_found() -> NotFound:
    return NotFound("not_found", NOT_YOURS)
