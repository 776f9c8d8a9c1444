"""Commands of a federation's owner: create, change, start, pause, resume, cancel, clone, delete."""

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from coordinator import audit, events
from coordinator.artifacts import service as artifacts
from coordinator.auth.principals import Principal, Role, require_role
from coordinator.clients import service as clients
from coordinator.db.sessions import lock_row
from coordinator.errors import Conflict, FieldError, Forbidden, Unprocessable
from coordinator.federations import lifecycle, repository
from coordinator.federations.schemas import CloneRequest, FederationCreate
from coordinator.federations.service import definitions, progress
from coordinator.models import Client, Federation, Organization, Worker
from coordinator.models.base import new_id
from coordinator.organizations import service as organizations
from coordinator.queue.wakeups import ADVANCE_FEDERATION, nudge
from coordinator.rounds import service as rounds
from coordinator.rounds.lifecycle import PAUSED as PAUSED_ROUND
from coordinator.rounds.lifecycle import TERMINAL as ENDED_ROUND
from coordinator.web.etags import check_match, require_match
from coordinator.workers import service as workers

INITIAL_ADAPTER = "initial_adapter"


def create(session: Session, principal: Principal, request: FederationCreate, now: datetime) -> Federation:
    """Creates a draft. Its owner is a member from the start."""
    require_role(principal, "owner")
    organization_id = _owner(session, principal, request)
    definition = definitions.resolve_definition(session, principal, request)
    return _create_draft(session, principal, organization_id, request.name, definition, now)


def change(
    session: Session, principal: Principal, federation_id: str, changes: dict[str, Any], if_match: str | None
) -> Federation:
    """Replaces fields of the draft that `if_match` names. Organizations that had accepted are invited again."""
    federation = _lock_own(session, principal, federation_id, "owner")
    if federation.state != "draft":
        raise Conflict("not_a_draft", f"The federation is {federation.state}: only a draft can be changed. Clone it.")
    request = definitions.parse({**definitions.request_of(federation.name, federation.definition), **changes})
    definition = definitions.resolve_definition(session, principal, request)
    require_match(if_match, federation.version)
    earlier_digest = federation.definition_digest
    federation.name, federation.definition, federation.seed = request.name, definition, definition["seed"]
    federation.version += 1
    _hold_initial(session, federation)
    facts = {"fields": sorted(changes), "definition_digest": federation.definition_digest}
    events.append(session, federation.id, "federation.changed", **facts)
    _audit(session, principal, "federation.changed", federation, **facts)
    if federation.definition_digest != earlier_digest:
        clients.renew_invitations(session, principal, federation)
    return federation


def clone(
    session: Session, principal: Principal, federation_id: str, request: CloneRequest, now: datetime
) -> Federation:
    """Creates a draft with the same definition and seed."""
    earlier = _lock_own(session, principal, federation_id, "owner")
    name = request.name or f"{earlier.name[:120]} copy"
    draft = definitions.parse(definitions.request_of(name, earlier.definition))
    definition = definitions.resolve_definition(session, principal, draft)
    return _create_draft(session, principal, earlier.organization_id, name, definition, now, cloned_from=earlier.id)


def start(
    session: Session, principal: Principal, federation_id: str, now: datetime, if_match: str | None = None
) -> Federation:
    """Starts a draft. Raises Conflict with the reasons if no registered worker can run it.

    Raises Unprocessable for a draft of an earlier version that this version cannot read.
    """
    federation = _lock_own(session, principal, federation_id, "owner", "operator")
    check_match(if_match, federation.version)
    _move(federation, "start")
    definitions.parse(definitions.request_of(federation.name, federation.definition))
    _check_workers(session, federation)
    federation.started_at = federation.waiting_since = now
    events.append(session, federation.id, "federation.started")
    _audit(session, principal, "federation.started", federation)
    nudge(session, ADVANCE_FEDERATION, federation.id)
    return federation


def pause(session: Session, principal: Principal, federation_id: str, at_once: bool, now: datetime) -> Federation:
    """Opens no new round. `at_once` withdraws the open one; its accepted updates count after `resume`."""
    federation = _lock_own(session, principal, federation_id, "owner", "operator")
    _move(federation, "pause")
    federation.waiting_since = now
    if at_once:
        _withdraw_round(session, federation, PAUSED_ROUND, now)
    events.append(session, federation.id, "federation.paused", at_once=at_once)
    _audit(session, principal, "federation.paused", federation, at_once=at_once)
    nudge(session, ADVANCE_FEDERATION, federation.id)
    return federation


def resume(session: Session, principal: Principal, federation_id: str, now: datetime) -> Federation:
    """Continues a paused federation."""
    federation = _lock_own(session, principal, federation_id, "owner", "operator")
    _move(federation, "resume")
    federation.waiting_since = now
    events.append(session, federation.id, "federation.resumed")
    _audit(session, principal, "federation.resumed", federation)
    nudge(session, ADVANCE_FEDERATION, federation.id)
    return federation


def cancel(session: Session, principal: Principal, federation_id: str, now: datetime) -> Federation:
    """Ends the federation now. Adapters of aggregated rounds are kept."""
    federation = _lock_own(session, principal, federation_id, "owner", "operator")
    lifecycle.move(federation.state, "cancel")
    _withdraw_round(session, federation, "cancelled", now)
    progress.end(session, principal.id, federation, "cancel", "cancelled", None, now)
    return federation


def delete(
    session: Session, principal: Principal, federation_id: str, now: datetime, if_match: str | None = None
) -> None:
    """Deletes a draft or an ended federation, with its rounds, jobs and artifacts. Keeps ledgers and audit logs."""
    federation = _lock_own(session, principal, federation_id, "owner")
    if federation.state in lifecycle.ACTIVE:
        raise Conflict("federation_state", f"The federation is {federation.state}: cancel it before you delete it.")
    check_match(if_match, federation.version)
    organizations.keep_deeds(session, federation, now)
    rounds.release_all(session, federation.id)
    artifacts.release(session, federation.id)
    _audit(session, principal, "federation.deleted", federation, name=federation.name, state=federation.state)
    session.delete(federation)


def _owner(session: Session, principal: Principal, request: FederationCreate) -> str:
    own = principal.organization_id
    if own is not None and request.organization_id in (None, own):
        return own
    if own is not None:
        raise Forbidden("not_your_organization", "A key creates federations only for its own organization.")
    if request.organization_id is None or session.get(Organization, request.organization_id) is None:
        detail = "must name the organization that owns the federation"
        raise Unprocessable(
            "organization_unknown",
            f"`/organization_id` {detail}.",
            errors=[FieldError(pointer="/organization_id", detail=detail)],
        )
    return request.organization_id


def _create_draft(
    session: Session,
    principal: Principal,
    organization_id: str,
    name: str,
    definition: dict[str, Any],
    now: datetime,
    **origin: str,
) -> Federation:
    federation = Federation(
        id=new_id("fed"),
        organization_id=organization_id,
        name=name,
        state="draft",
        definition=definition,
        seed=definition["seed"],
        next_ordinal=0,
        version=0,
        created_at=now,
    )
    session.add(federation)
    session.flush()
    clients.admit_owner(session, federation, now)
    _hold_initial(session, federation)
    events.append(session, federation.id, "federation.created")
    _audit(session, principal, "federation.created", federation, name=name, **origin)
    session.flush()
    return federation


def _hold_initial(session: Session, federation: Federation) -> None:
    artifacts.release(session, federation.id, INITIAL_ADAPTER)
    initial = federation.definition["initial_adapter"]
    for name in ("digest", "config_digest"):
        if initial is not None:
            artifacts.hold(session, initial[name], federation.id, INITIAL_ADAPTER)


def _lock_own(session: Session, principal: Principal, federation_id: str, *roles: Role) -> Federation:
    """Locks the federation for its owner's keys with one of these roles. Raises NotFound, Forbidden."""
    federation = clients.visible_federation(session, principal, federation_id)
    if principal.role != "admin" and principal.organization_id != federation.organization_id:
        raise Forbidden("not_the_owner", "Only the organization that owns the federation may do this.")
    require_role(principal, *roles)
    return lock_row(session, Federation, federation.id) or federation


def _audit(
    session: Session, principal: Principal, action: audit.Action, federation: Federation, **details: Any
) -> None:
    audience = clients.audit_audience(session, federation)
    audit.append(session, principal.id, action, federation.id, audience, **details)


def _move(federation: Federation, event: lifecycle.Event) -> None:
    federation.state = lifecycle.move(federation.state, event)
    federation.version += 1


def _withdraw_round(session: Session, federation: Federation, reason: str, now: datetime) -> None:
    newest = rounds.newest(session, federation.id)
    if newest is not None and newest.state not in ENDED_ROUND:
        rounds.withdraw(session, newest.id, reason, now)


def _check_workers(session: Session, federation: Federation) -> None:
    participants = [row for row in repository.clients(session, federation.id) if row.state in ("registered", "ready")]
    reasons = [_incompatibility(session, federation, client) for client in participants if not client.evaluates_only]
    if reasons and all(reason is not None for reason in reasons):
        summary = "; ".join(str(reason) for reason in reasons[:10])
        raise Conflict("no_worker_can_run", f"None of the registered workers can run this federation: {summary}.")


def _incompatibility(session: Session, federation: Federation, client: Client) -> str | None:
    worker = session.get_one(Worker, client.worker_id)
    if worker.revoked_at is not None:
        return f"{client.name}: the worker was revoked"
    capabilities = workers.capabilities_of(worker)
    reason = lifecycle.incompatibility(federation.definition, capabilities, client.dataset)
    return None if reason is None else f"{client.name}: {reason}"
