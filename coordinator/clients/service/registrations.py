"""Registrations of workers' data sets as clients, and the transitions of these clients.

Jobs are not ended here. This module wakes the federation, which withdraws the jobs of clients that are gone.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from coordinator import audit, events
from coordinator.auth.principals import Principal
from coordinator.clients import lifecycle, repository
from coordinator.clients.schemas import ClientCreate
from coordinator.clients.service import access
from coordinator.errors import BadRequest, Conflict, NotFound, Unprocessable
from coordinator.models import Client, Federation, Worker
from coordinator.queue.wakeups import ADVANCE_FEDERATION, nudge
from coordinator.web.pagination import Page, PageRequest
from coordinator.workers import service as workers
from federated.names import MAX_NAME

ORDINAL_DIGITS = 9


def register(
    session: Session, principal: Principal, federation_id: str, request: ClientCreate, now: datetime
) -> Client:
    """Registers a data set of one of the caller's workers. A client that left keeps its ordinal."""
    federation = access.lock_changeable(session, principal, federation_id)
    worker = session.get(Worker, request.worker_id)
    if worker is None or (principal.role != "admin" and worker.organization_id != principal.organization_id):
        raise NotFound("worker_unknown", f"Your organization has no worker {request.worker_id}.")
    _check_takes_part(session, federation, worker.organization_id)
    _check_not_revoked(worker)
    lifecycle.check_dataset(workers.capabilities_of(worker), request.dataset, federation.definition)
    lifecycle.check_settings(federation.definition, request.settings)
    client = _place(session, federation, worker, request, now)
    events.append(session, federation.id, "client.registered", **_identity(client))
    facts = {"worker_id": worker.id, "dataset": client.dataset, "settings": client.settings}
    _audit(session, principal.id, "client.registered", client, **facts, evaluates_only=client.evaluates_only)
    if federation.state == "running":
        nudge(session, ADVANCE_FEDERATION, federation.id)
    return client


def _check_takes_part(session: Session, federation: Federation, organization_id: str) -> None:
    invitation = repository.invitation_now(session, federation.id, organization_id)
    if invitation is None or invitation.state != "accepted":
        state = invitation.state if invitation else "not invited"
        raise Conflict("invitation_not_accepted", f"Accept the invitation first: your organization is {state}.")


def _check_not_revoked(worker: Worker) -> None:
    if worker.revoked_at is not None:
        raise Conflict("worker_revoked", f"Worker {worker.id} was revoked; use another worker.")


def _place(session: Session, federation: Federation, worker: Worker, request: ClientCreate, now: datetime) -> Client:
    client = repository.registration(session, federation.id, worker.id, request.dataset)
    if client is None:
        client = repository.add_client(session, federation, worker, request.dataset, now)
    elif client.state == "left":
        _move(client, "register")
        client.reason = client.reason_detail = client.examples = client.evaluation_examples = None
    else:
        raise Conflict("client_exists", f"This data set is already registered, as client {client.id}.")
    client.name = request.name or f"{worker.name} {request.dataset}"[:MAX_NAME].rstrip()
    client.settings, client.evaluates_only = request.settings, request.evaluates_only
    return client


def leave_client(session: Session, principal: Principal, client_id: str, reason: str | None) -> Client:
    """The data set leaves the federation."""
    client = access.lock_own_client(session, principal, client_id)
    mark_left(session, client, reason)
    _audit(session, principal.id, "client.left", client, reason=reason)
    access.wake(session, client.federation_id)
    return client


def restore(session: Session, principal: Principal, client_id: str) -> Client:
    """Registers a client that is out again, after its owner fixed the cause. It is described again."""
    return _register_again(session, principal, access.lock_own_client(session, principal, client_id), "restore")


def _register_again(session: Session, principal: Principal, client: Client, event: lifecycle.ClientEvent) -> Client:
    lifecycle.check_live(session.get_one(Federation, client.federation_id).state)
    _move(client, event)
    _check_not_revoked(session.get_one(Worker, client.worker_id))
    client.reason = client.reason_detail = None
    events.append(session, client.federation_id, "client.restored", **_identity(client))
    _audit(session, principal.id, "client.restored", client)
    nudge(session, ADVANCE_FEDERATION, client.federation_id)
    return client


def expel(session: Session, principal: Principal, client_id: str, reason: str | None) -> Client:
    """Excludes a client. Only the federation's owner can expel and readmit."""
    client = access.lock_for_owner(session, principal, client_id)
    lifecycle.check_live(session.get_one(Federation, client.federation_id).state)
    _move(client, "expel")
    client.reason, client.reason_detail = "expelled", reason
    events.append(session, client.federation_id, "client.expelled", **_identity(client), reason=reason)
    _audit(session, principal.id, "client.expelled", client, reason=reason)
    access.wake(session, client.federation_id)
    return client


def readmit(session: Session, principal: Principal, client_id: str) -> Client:
    """Readmits an expelled client, for the federation's owner. It is described again."""
    client = access.lock_for_owner(session, principal, client_id)
    _check_takes_part(session, session.get_one(Federation, client.federation_id), client.organization_id)
    return _register_again(session, principal, client, "readmit")


def clients_of(session: Session, principal: Principal, federation_id: str, page: PageRequest) -> Page[Client]:
    """Clients sorted by ordinal: all of them for the federation's owner, otherwise those of the own organization."""
    if page.after is not None and not (page.after.isdecimal() and len(page.after) <= ORDINAL_DIGITS):
        raise BadRequest("cursor_invalid", "`cursor` is not from an earlier page.")
    statement = repository.clients_statement(federation_id, access.scope(session, principal, federation_id))
    return page.rows(session, statement, Client.ordinal)


def take_out(session: Session, client: Client, reason: str, detail: str | None) -> None:
    """Takes the client out until its owner restores it. The reason is shown to the owner."""
    _move(client, "take_out")
    client.reason, client.reason_detail = reason, detail
    events.append(session, client.federation_id, "client.out", **_identity(client), reason=reason, detail=detail)
    _audit(session, audit.COORDINATOR, "client.out", client, reason=reason)


def mark_ready(session: Session, client: Client, examples: int, evaluation_examples: int) -> None:
    """Marks a client ready after its description was accepted. It can be drawn now."""
    _move(client, "describe")
    client.examples, client.evaluation_examples = examples, evaluation_examples
    facts = {"examples": examples, "evaluation_examples": evaluation_examples}
    events.append(session, client.federation_id, "client.ready", **_identity(client), **facts)


def _move(client: Client, event: lifecycle.ClientEvent) -> None:
    client.state = lifecycle.move_client(client.state, event)
    client.version += 1


def remove_after_change(session: Session, principal: Principal, federation: Federation) -> None:
    """Removes clients after a draft's definition changed: all clients of invited organizations.

    Clients of the owner leave only if their data set or settings do not fit the new definition.
    """
    for client in repository.clients(session, federation.id, *lifecycle.CURRENT_STATES):
        own = client.organization_id == federation.organization_id
        misfit = _misfit(session, federation, client) if own else None
        if not own or misfit is not None:
            _move(client, "leave")
            client.reason, client.reason_detail = lifecycle.DEFINITION_CHANGED, misfit
            facts = {"reason": lifecycle.DEFINITION_CHANGED, "detail": misfit}
            events.append(session, federation.id, "client.left", **_identity(client), **facts)
            _audit(session, principal.id, "client.left", client, **facts)


def _misfit(session: Session, federation: Federation, client: Client) -> str | None:
    """The reason that the client does not fit the definition; None if it fits."""
    capabilities = workers.capabilities_of(session.get_one(Worker, client.worker_id))
    try:
        lifecycle.check_dataset(capabilities, client.dataset, federation.definition)
        lifecycle.check_settings(federation.definition, client.settings)
    except Unprocessable as refusal:
        return refusal.detail
    return None


def mark_left(session: Session, client: Client, reason: str | None) -> None:
    _move(client, "leave")
    client.reason, client.reason_detail = "left", reason
    events.append(session, client.federation_id, "client.left", **_identity(client), reason=reason)


def _audit(session: Session, by: str, action: audit.Action, client: Client, **details: Any) -> None:
    owner = session.get_one(Federation, client.federation_id).organization_id
    audience = [owner, client.organization_id]
    audit.append(session, by, action, client.id, audience, federation_id=client.federation_id, **details)


def _identity(client: Client) -> dict[str, Any]:
    return {"client_id": client.id, "ordinal": client.ordinal}


def ready_clients(session: Session, federation_id: str) -> list[Client]:
    """Described clients, including those that only evaluate, sorted by ordinal."""
    return repository.clients(session, federation_id, "ready")


def alive_ordinals(session: Session, federation_id: str, now: datetime) -> dict[int, Client]:
    """Ordinal -> client that can be drawn: ready, training and its worker alive. Sorted by ordinal."""
    clients = [client for client in ready_clients(session, federation_id) if not client.evaluates_only]
    alive = workers.alive(session, {client.worker_id for client in clients}, now)
    return {client.ordinal: client for client in clients if client.worker_id in alive}


def by_ordinals(session: Session, federation_id: str, ordinals: Sequence[int]) -> list[Client]:
    """Clients with these ordinals in any state, sorted by ordinal."""
    return repository.clients_by_ordinal(session, federation_id, ordinals)
