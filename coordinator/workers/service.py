"""Workers enrol with a token, say that they are there, change their keys, and are revoked.

What ends with a revoked worker, its clients and their jobs, is `jobs`' to end: see `jobs.revoke_worker`.
"""

from base64 import urlsafe_b64encode
from collections.abc import Collection, Sequence
from datetime import datetime

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy.orm import Session

from coordinator import audit
from coordinator.auth.credentials import read_public_key, signature_holds
from coordinator.auth.principals import NOT_YOURS, Principal, require_role
from coordinator.db.batching import each
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
    """A new worker of the token's organization. The same key and name again find the same worker, at no use.

    Raises Unauthenticated (the token), Unprocessable (the key, its proof), Conflict (name or key are taken).
    """
    token = organizations.find_token(session, request.token)
    public_key = _canonical(request.public_key)
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


def _canonical(public_key: str) -> str:
    try:
        raw = read_public_key(public_key).public_bytes(Encoding.Raw, PublicFormat.Raw)
    except ValueError as error:
        raise _refused("public_key", str(error)) from None
    return urlsafe_b64encode(raw).decode().rstrip("=")


def _check_proof(request: EnrollRequest | RotateKeyRequest, message: bytes) -> None:
    """Nobody registers a key that is another's: who sends it holds its private key."""
    if request.proof is None:
        raise _refused("proof", "is missing: this worker agent is older than the coordinator; upgrade it")
    if not signature_holds(request.public_key, request.proof, message):
        raise _refused("proof", "is no signature by `public_key` of what is asked for here")


def _refused(field: str, detail: str) -> Unprocessable:
    fault = FieldError(pointer=f"/{field}", detail=detail)
    return Unprocessable(f"{field}_invalid", f"`{field}`: {detail}.", errors=[fault])


def rotate_key(session: Session, principal: Principal, request: RotateKeyRequest, now: datetime) -> RotateKeyResponse:
    """The worker has another key from its next request on. What was signed with the old one keeps its worth.

    Whoever else held the old one is shut out, so that nothing is left of a doubled worker. Raises Unprocessable (the
    key, its proof), Conflict (a key that was somebody's already).
    """
    worker = _existing(lock_row(session, Worker, principal.id))
    public_key = _canonical(request.public_key)
    _check_proof(request, rotation_message(worker.id, request.public_key))
    if public_key != worker.public_key:
        _check_unused(session, public_key)
        repository.retire_keys(session, worker.id, now)
        worker.public_key, worker.doubled_at = public_key, None
        _remember_key(session, worker, now)
        of = [worker.organization_id]
        audit.append(session, worker.id, "worker.key_rotated", worker.id, of, key_id=key_id(public_key))
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


def locked(session: Session, worker_ids: Collection[str]) -> dict[str, Worker]:
    """The workers with these ids, locked."""
    return {worker.id: worker for worker in repository.locked(session, worker_ids)}


def hear(
    session: Session, heard: Sequence[tuple[str, HeartbeatRequest]], now: datetime
) -> list[HeartbeatResponse | CoordinatorError]:
    """These workers, by id, are there; with `capabilities`, that is what they can from now on.

    NotFound for one that is not known, Conflict (`worker_doubled`) for an agent that another one has replaced.
    """
    workers = locked(session, {worker_id for worker_id, _ in heard})
    return each(heard, lambda one: _hear(session, _existing(workers.get(one[0])), one[1], now))


def _hear(session: Session, worker: Worker, request: HeartbeatRequest, now: datetime) -> HeartbeatResponse | Conflict:
    if (refusal := refusal_of(worker, request.boot_id)) is not None:
        _note_double(session, worker, request.boot_id, now)
        return refusal
    if worker.boot_id not in (None, request.boot_id):
        worker.replaced_boots = lifecycle.with_replaced(worker.replaced_boots, str(worker.boot_id))
    worker.last_seen_at, worker.boot_id = now, request.boot_id
    told = worker.capabilities if request.capabilities is None else request.capabilities.model_dump(mode="json")
    if told != worker.capabilities:
        worker.capabilities = told
    pause_seconds = get_settings().heartbeat_seconds
    return HeartbeatResponse(server_time=now, heartbeat_seconds=pause_seconds, doubled_at=worker.doubled_at)


def refusal_of(worker: Worker, boot_id: str) -> Conflict | None:
    """Why an agent of this boot id is refused: another one has come after it, with the same key. None: it is not."""
    if not lifecycle.is_replaced(worker, boot_id):
        return None
    detail = (
        f"Another agent with the key of worker {worker.id} was heard after this one: two agents run with one key. "
        "This one is refused; enrol it as a worker of its own."
    )
    return Conflict(WORKER_DOUBLED, detail)


def _note_double(session: Session, worker: Worker, boot_id: str, now: datetime) -> None:
    """Its owner sees when the earlier life was heard last, and in the audit log, once, beside which."""
    earlier, present = list(worker.replaced_boots or ()), str(worker.boot_id)
    worker.doubled_at, worker.replaced_boots = now, lifecycle.with_double(earlier, boot_id, present)
    if worker.replaced_boots != earlier:
        facts = {"name": worker.name, "refused_boot_id": boot_id, "present_boot_id": present}
        audit.append(session, audit.COORDINATOR, "worker.doubled", worker.id, [worker.organization_id], **facts)


def alive(session: Session, worker_ids: Collection[str], now: datetime) -> set[str]:
    """Those of the workers that are not revoked and were heard within `worker_timeout_seconds`."""
    return repository.alive(session, worker_ids, lifecycle.heard_since(now, get_settings().worker_timeout_seconds))


def show(session: Session, principal: Principal, worker_id: str) -> Worker:
    """The worker, to keys of its organization, to itself and to admins. Raises NotFound."""
    worker = _existing(session.get(Worker, worker_id))
    require_role(principal, "owner", "operator", "viewer", "worker", organization_id=worker.organization_id)
    if principal.role == "worker" and principal.id != worker.id:
        raise _not_found()
    return worker


def list_for(session: Session, principal: Principal, page: PageRequest) -> Page[Worker]:
    """The organization's workers; all of them to an admin."""
    return repository.workers(session, page, None if principal.role == "admin" else principal.organization_id)


def version_of(worker: Worker) -> str:
    """Changes with whatever a person decides about the worker, and with what it can; not with its heartbeats."""
    return etags.version_of(worker.name, worker.capabilities, worker.revoked_at)


def revoke(
    session: Session, principal: Principal, worker_id: str, now: datetime, if_match: str | None = None
) -> Worker:
    """Ends the worker's rights from its next request on. Revoking twice is no error.

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
    """What the worker told last. Fields that this version no longer knows are left out: the row may be older."""
    return Capabilities.model_validate(worker.capabilities, extra="ignore")


def answer(worker: Worker, now: datetime) -> WorkerResponse:
    """The worker as the API shows it."""
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


def own_answer(worker: Worker, now: datetime) -> OwnWorkerResponse:
    """The worker as it is shown itself."""
    return OwnWorkerResponse(**dict(answer(worker, now)), store_origins=get_settings().store_origins)


def _existing(worker: Worker | None) -> Worker:
    if worker is None:
        raise _not_found()
    return worker


def _not_found() -> NotFound:
    return NotFound("not_found", NOT_YOURS)
