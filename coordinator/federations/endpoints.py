"""HTTP endpoints of federations."""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from sqlalchemy.orm import Session

from coordinator import events
from coordinator.auth.principals import KeyPrincipal, OperatorPrincipal, OwnerPrincipal, Principal
from coordinator.db.batching import Batcher, map_errors
from coordinator.db.sessions import ReadSession, WriteSession, reading, utcnow
from coordinator.errors import CoordinatorError, NotFound, Unauthenticated
from coordinator.federations import service
from coordinator.federations.schemas import (
    CloneRequest,
    EventPage,
    EventResponse,
    FederationChange,
    FederationCreate,
    FederationResponse,
)
from coordinator.models import Federation
from coordinator.web.body_limits import LARGE_BODY, PathId
from coordinator.web.etags import IfMatch, set_version
from coordinator.web.pagination import MAX_NUMBER, Listing, Paging
from coordinator.web.problem_details import LOCATION_HEADER, problem_responses
from coordinator.web.routes import Route
from coordinator.web.wait_statements import Subject
from coordinator.web.waits import Wait, WaitingStream, open_wait

router = APIRouter(prefix="/v1/federations", tags=["federations"], route_class=Route)

PING_SECONDS = 15.0
STREAM_SECONDS = 300.0
"""A stream ends after this time; its reader reconnects."""

_EVENT_STREAM = "text/event-stream"
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {_EVENT_STREAM: {"schema": {"type": "string"}}}, "description": "Events, in order"}
}


@router.post(
    "",
    status_code=201,
    operation_id="create_federation",
    responses=LOCATION_HEADER | problem_responses(403),
    openapi_extra=LARGE_BODY,
)
def create_federation(
    request: FederationCreate, principal: OwnerPrincipal, session: WriteSession, response: Response
) -> FederationResponse:
    """Create a draft."""
    federation = service.create(session, principal, request, utcnow())
    response.headers["Location"] = f"{router.prefix}/{federation.id}"
    return _one(session, federation, response)


@router.get("", operation_id="list_federations", responses=problem_responses(400, 403))
def list_federations(principal: KeyPrincipal, session: ReadSession, page: Paging) -> Listing[FederationResponse]:
    """List the federations that the key's organization owns, is invited to or is a member of."""
    federations = page.rows(session, service.statement_for(principal), Federation.id)
    now = utcnow()
    items = [service.to_response(session, row, now) for row in federations.rows]
    return Listing(items=items, next_cursor=federations.next_cursor)


@router.get("/{federation_id}", operation_id="show_federation", responses=problem_responses(403, 404))
def show_federation(
    federation_id: PathId, principal: KeyPrincipal, session: ReadSession, response: Response
) -> FederationResponse:
    """Show a federation, with what it waits for and since when, or how it ended."""
    return _one(session, service.visible(session, principal, federation_id), response)


@router.patch(
    "/{federation_id}",
    operation_id="change_federation",
    responses=problem_responses(403, 404, 409, 412, 428),
    openapi_extra=LARGE_BODY,
)
def change_federation(
    federation_id: PathId,
    request: FederationChange,
    principal: OwnerPrincipal,
    session: WriteSession,
    response: Response,
    if_match: IfMatch = None,
) -> FederationResponse:
    """Change a draft. Needs `If-Match`. Members are invited again, and their clients leave."""
    federation = service.change(session, principal, federation_id, request.changes(), if_match)
    return _one(session, federation, response)


@router.delete(
    "/{federation_id}",
    status_code=204,
    operation_id="delete_federation",
    responses=problem_responses(403, 404, 409, 412),
)
def delete_federation(
    federation_id: PathId, principal: OwnerPrincipal, session: WriteSession, if_match: IfMatch = None
) -> None:
    """Delete a draft or an ended federation, with its rounds, jobs and artifacts."""
    service.delete(session, principal, federation_id, utcnow(), if_match)


@router.post(
    "/{federation_id}/start", operation_id="start_federation", responses=problem_responses(403, 404, 409, 412)
)
def start_federation(
    federation_id: PathId, principal: OperatorPrincipal, session: WriteSession, if_match: IfMatch = None
) -> FederationResponse:
    """Start a draft. `If-Match` is optional. Refused, with the reasons, if no worker can run it."""
    now = utcnow()
    return service.to_response(session, service.start(session, principal, federation_id, now, if_match), now)


@router.post("/{federation_id}/pause", operation_id="pause_federation", responses=problem_responses(403, 404, 409))
def pause_federation(
    federation_id: PathId,
    principal: OperatorPrincipal,
    session: WriteSession,
    at_once: Annotated[bool, Query(alias="now", description="withdraw the open round")] = False,
) -> FederationResponse:
    """Pause: open no new round. The open one runs to its end, unless `now=true` withdraws it."""
    now = utcnow()
    return service.to_response(session, service.pause(session, principal, federation_id, at_once, now), now)


@router.post("/{federation_id}/resume", operation_id="resume_federation", responses=problem_responses(403, 404, 409))
def resume_federation(
    federation_id: PathId, principal: OperatorPrincipal, session: WriteSession
) -> FederationResponse:
    """Continue after a pause. Updates that a withdrawn round had accepted still count."""
    now = utcnow()
    return service.to_response(session, service.resume(session, principal, federation_id, now), now)


@router.post("/{federation_id}/cancel", operation_id="cancel_federation", responses=problem_responses(403, 404, 409))
def cancel_federation(
    federation_id: PathId, principal: OperatorPrincipal, session: WriteSession
) -> FederationResponse:
    """End a federation now. Its adapters are kept."""
    now = utcnow()
    return service.to_response(session, service.cancel(session, principal, federation_id, now), now)


@router.post(
    "/{federation_id}/clone",
    status_code=201,
    operation_id="clone_federation",
    responses=LOCATION_HEADER | problem_responses(403, 404),
)
def clone_federation(
    federation_id: PathId,
    principal: OwnerPrincipal,
    session: WriteSession,
    response: Response,
    request: CloneRequest | None = None,
) -> FederationResponse:
    """Create a draft with the same definition and seed."""
    federation = service.clone(session, principal, federation_id, request or CloneRequest(), utcnow())
    response.headers["Location"] = f"{router.prefix}/{federation.id}"
    return _one(session, federation, response)


@router.get(
    "/{federation_id}/events",
    operation_id="list_events",
    response_model=EventPage,
    responses=_EVENTS | problem_responses(403, 404),
)
async def list_events(
    federation_id: PathId,
    principal: KeyPrincipal,
    connection: Request,
    after: Annotated[int, Query(ge=0, le=MAX_NUMBER, description="number of the last event seen")] = 0,
    wait: Annotated[float, Query(ge=0, le=30, description="seconds to wait for an event")] = 0.0,
    last_event_id: Annotated[int | None, Header(ge=0, le=MAX_NUMBER, description="replaces `after`")] = None,
) -> EventPage | Response:
    """List the events after `after`, oldest first. `wait` waits for one if there is none yet.

    With `Accept: text/event-stream` events are streamed (Server-Sent Events), each with its number as `id`.
    The number of open streams and waits is limited: further ones get 429 (`too_many_waits`).
    """
    state = await _events((principal, federation_id, after if last_event_id is None else last_event_id))
    opening = partial(open_wait, principal, Subject("federation", federation_id), state.mark)
    if _EVENT_STREAM in connection.headers.get("Accept", ""):
        lines = partial(_stream, principal, federation_id, state.page)
        return WaitingStream(opening(), lines, _STREAM_HEADERS, _EVENT_STREAM)
    if not wait or state.page.items:
        return state.page
    give_up_at = time.monotonic() + wait
    async with opening(connection=connection) as waiting:
        while not state.page.items and await waiting.change(give_up_at - time.monotonic()):
            state = await _events((principal, federation_id, state.page.next_after))
            waiting.mark = state.mark
    return state.page


async def _stream(principal: Principal, federation_id: str, page: EventPage, wait: Wait) -> AsyncIterator[str]:
    """Server-Sent Events from this page on, with a comment every `PING_SECONDS` without events.

    Ends when the federation is deleted or the principal loses access.
    """
    now = sent_at = time.monotonic()
    end_at = now + STREAM_SECONDS
    while now < end_at:
        if page.items or now - sent_at >= PING_SECONDS:
            sent_at = now
            yield "".join(map(_line, page.items)) + ": here\n\n"
        page = EventPage(items=[], next_after=page.next_after)
        try:
            if await wait.change(min(sent_at + PING_SECONDS, end_at) - now):
                state = await _events((principal, federation_id, page.next_after))
                page, wait.mark = state.page, state.mark
        except (NotFound, Unauthenticated):
            return
        now = time.monotonic()


def _line(event: EventResponse) -> str:
    return f"id: {event.number}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"


def _one(session: Session, federation: Federation, response: Response) -> FederationResponse:
    set_version(response, federation.version)
    return service.to_response(session, federation, utcnow())


_EventQuery = tuple[Principal, str, int]


@dataclass(frozen=True, slots=True)
class _State:
    """A page of events, and the number of the newest event that was considered, read in one transaction."""

    page: EventPage
    mark: int


def _events_for_all(queries: Sequence[_EventQuery]) -> list[_State | CoordinatorError]:
    with reading() as session:
        read = cache(partial(_events_after, session))
        # Keys of one organization with the same role see the same events: read once for all of them.
        return map_errors(queries, lambda query: read((replace(query[0], id=""), *query[1:])))


def _events_after(session: Session, query: _EventQuery) -> _State:
    principal, federation_id, after = query
    page = service.events_after(session, principal, service.visible(session, principal, federation_id), after)
    return _State(page, min(events.latest_number(session, federation_id), page.next_after))


_events = Batcher(_events_for_all)
