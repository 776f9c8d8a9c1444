"""HTTP for federations."""

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.concurrency import run_in_threadpool

from coordinator.database import ReadSession, WriteSession, reading, utcnow
from coordinator.federations import service
from coordinator.federations.schemas import (
    CloneRequest,
    EventPage,
    FederationAnswer,
    FederationChange,
    FederationCreate,
)
from coordinator.models import Federation
from coordinator.pagination import Listing, Paging
from coordinator.problems import problem_responses
from coordinator.security import KeyPrincipal, Principal

router = APIRouter(prefix="/v1/federations", tags=["federations"])

POLL_SECONDS = 0.25


@router.post("", status_code=201, operation_id="create_federation", responses=problem_responses(403))
def create_federation(
    request: FederationCreate, principal: KeyPrincipal, session: WriteSession, response: Response
) -> FederationAnswer:
    """Create a federation as a draft."""
    now = utcnow()
    federation = service.create(session, principal, request, now)
    response.headers["Location"] = f"{router.prefix}/{federation.id}"
    return service.answer(session, federation, now)


@router.get("", operation_id="list_federations", responses=problem_responses(400, 403))
def list_federations(principal: KeyPrincipal, session: ReadSession, page: Paging) -> Listing[FederationAnswer]:
    """List the federations that the key's organization owns, is invited to or takes part in."""
    found = page.rows(session, service.statement_for(principal), Federation.id)
    now = utcnow()
    items = [service.answer(session, row, now) for row in found.rows]
    return Listing(items=items, next_cursor=found.next_cursor)


@router.get("/{federation_id}", operation_id="show_federation", responses=problem_responses(403, 404))
def show_federation(federation_id: str, principal: KeyPrincipal, session: ReadSession) -> FederationAnswer:
    """Show a federation: what it waits for and since when, or how it ended."""
    return service.answer(session, service.visible(session, principal, federation_id), utcnow())


@router.patch("/{federation_id}", operation_id="change_federation", responses=problem_responses(403, 404, 409))
def change_federation(
    federation_id: str, request: FederationChange, principal: KeyPrincipal, session: WriteSession
) -> FederationAnswer:
    """Change a draft that nobody has agreed to yet."""
    return service.answer(session, service.change(session, principal, federation_id, request.changes()), utcnow())


@router.delete(
    "/{federation_id}", status_code=204, operation_id="delete_federation", responses=problem_responses(403, 404, 409)
)
def delete_federation(federation_id: str, principal: KeyPrincipal, session: WriteSession) -> None:
    """Delete a draft or an ended federation, with its rounds, jobs and artifacts."""
    service.delete(session, principal, federation_id)


@router.post("/{federation_id}/start", operation_id="start_federation", responses=problem_responses(403, 404, 409))
def start_federation(federation_id: str, principal: KeyPrincipal, session: WriteSession) -> FederationAnswer:
    """Start a draft. Refused, with the reasons, if none of the registered workers could run it."""
    now = utcnow()
    return service.answer(session, service.start(session, principal, federation_id, now), now)


@router.post("/{federation_id}/pause", operation_id="pause_federation", responses=problem_responses(403, 404, 409))
def pause_federation(
    federation_id: str,
    principal: KeyPrincipal,
    session: WriteSession,
    at_once: Annotated[bool, Query(alias="now", description="take the open round back")] = False,
) -> FederationAnswer:
    """Pause: no new round. The open one runs to its end, unless `now=true` takes it back."""
    now = utcnow()
    return service.answer(session, service.pause(session, principal, federation_id, at_once, now), now)


@router.post("/{federation_id}/resume", operation_id="resume_federation", responses=problem_responses(403, 404, 409))
def resume_federation(federation_id: str, principal: KeyPrincipal, session: WriteSession) -> FederationAnswer:
    """Go on after a pause. What a round that was taken back had accepted still counts."""
    now = utcnow()
    return service.answer(session, service.resume(session, principal, federation_id, now), now)


@router.post("/{federation_id}/cancel", operation_id="cancel_federation", responses=problem_responses(403, 404, 409))
def cancel_federation(federation_id: str, principal: KeyPrincipal, session: WriteSession) -> FederationAnswer:
    """End a federation now. Adapters that were made stay."""
    now = utcnow()
    return service.answer(session, service.cancel(session, principal, federation_id, now), now)


@router.post(
    "/{federation_id}/clone",
    status_code=201,
    operation_id="clone_federation",
    responses=problem_responses(403, 404),
)
def clone_federation(
    federation_id: str,
    principal: KeyPrincipal,
    session: WriteSession,
    response: Response,
    request: CloneRequest | None = None,
) -> FederationAnswer:
    """Make a new draft with the same definition, seed included."""
    now = utcnow()
    federation = service.clone(session, principal, federation_id, request or CloneRequest(), now)
    response.headers["Location"] = f"{router.prefix}/{federation.id}"
    return service.answer(session, federation, now)


@router.get("/{federation_id}/events", operation_id="list_events", responses=problem_responses(403, 404))
async def list_events(
    federation_id: str,
    principal: KeyPrincipal,
    after: Annotated[int, Query(ge=0, description="number of the last event seen")] = 0,
    wait: Annotated[float, Query(ge=0, le=30, description="seconds to wait for an event")] = 0.0,
) -> EventPage:
    """List what happened after an event, oldest first; waits for one if there is none yet."""
    give_up_at = time.monotonic() + wait
    while True:
        page = await run_in_threadpool(_events, principal, federation_id, after)
        if page.items or time.monotonic() >= give_up_at:
            return page
        await asyncio.sleep(POLL_SECONDS)


def _events(principal: Principal, federation_id: str, after: int) -> EventPage:
    with reading() as session:
        federation = service.visible(session, principal, federation_id)
        return service.events_after(session, federation.id, after)
