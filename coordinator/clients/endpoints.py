"""HTTP endpoints of invitations and clients."""

from typing import Annotated

from fastapi import APIRouter, Body, Header, Response
from sqlalchemy.orm import Session

from coordinator.auth.principals import KeyPrincipal, OperatorPrincipal
from coordinator.clients import service
from coordinator.clients.schemas import (
    Acceptance,
    ClientCreate,
    ClientResponse,
    InvitationCreate,
    InvitationResponse,
    Reason,
    client_response,
)
from coordinator.db.sessions import ReadSession, WriteSession, utcnow
from coordinator.models import Invitation
from coordinator.web.body_limits import PathId, body_of_at_most
from coordinator.web.etags import set_version
from coordinator.web.pagination import Listing, Page, Paging
from coordinator.web.problem_details import LOCATION_HEADER, problem_responses
from coordinator.web.routes import Route

router = APIRouter(prefix="/v1", tags=["clients"], route_class=Route)
MAX_REGISTRATION_BYTES = 64 * 1024
OptionalReason = Annotated[Reason, Body()]
OptionalAcceptance = Annotated[Acceptance, Body()]
AgreedDigest = Annotated[
    str | None,
    Header(alias="If-Match", max_length=1024, description='the accepted `"<definition_digest>"`; not `*`'),
]
_CHANGES = problem_responses(403, 404, 409)
_NO_REASON = Reason()
_NO_ACCEPTANCE = Acceptance()


@router.post(
    "/federations/{federation_id}/invitations",
    status_code=201,
    operation_id="invite_organization",
    responses=_CHANGES,
)
def invite_organization(
    federation_id: PathId, request: InvitationCreate, principal: OperatorPrincipal, session: WriteSession
) -> InvitationResponse:
    """Invite an organization (the federation's owner)."""
    return _one(session, service.invite(session, principal, federation_id, request.organization_id, utcnow()))


@router.get(
    "/federations/{federation_id}/invitations",
    operation_id="list_invitations",
    responses=problem_responses(400, 403, 404),
)
def list_invitations(
    federation_id: PathId, principal: KeyPrincipal, session: ReadSession, page: Paging
) -> Listing[InvitationResponse]:
    """List invitations: all of them for the federation's owner, otherwise that of the own organization."""
    return _listing(session, service.invitations_of(session, principal, federation_id, page))


@router.delete(
    "/federations/{federation_id}/invitations/{organization_id}",
    status_code=204,
    operation_id="remove_organization",
    responses=_CHANGES,
)
def remove_organization(
    federation_id: PathId, organization_id: PathId, principal: OperatorPrincipal, session: WriteSession
) -> None:
    """Withdraw an invitation, or remove an organization with its clients (the federation's owner)."""
    service.remove(session, principal, federation_id, organization_id, utcnow())


@router.get("/invitations", operation_id="list_own_invitations", responses=problem_responses(400, 403))
def list_own_invitations(principal: KeyPrincipal, session: ReadSession, page: Paging) -> Listing[InvitationResponse]:
    """List the organization's invitations, with the terms of participation."""
    return _listing(session, service.my_invitations(session, principal, page))


@router.post(
    "/federations/{federation_id}/accept",
    operation_id="accept_invitation",
    responses=_CHANGES | problem_responses(412, 428),
)
def accept_invitation(
    federation_id: PathId,
    principal: OperatorPrincipal,
    session: WriteSession,
    response: Response,
    request: OptionalAcceptance = _NO_ACCEPTANCE,
    if_match: AgreedDigest = None,
) -> InvitationResponse:
    """Accept the invitation to the federation whose definition has this digest."""
    invitation = service.accept(session, principal, federation_id, request.definition_digest, if_match, utcnow())
    set_version(response, invitation.agreed_digest)
    return _one(session, invitation)


@router.post("/federations/{federation_id}/decline", operation_id="decline_invitation", responses=_CHANGES)
def decline_invitation(
    federation_id: PathId, principal: OperatorPrincipal, session: WriteSession, request: OptionalReason = _NO_REASON
) -> InvitationResponse:
    """Decline the invitation. The reason is shown to the federation's owner."""
    return _one(session, service.decline(session, principal, federation_id, request.reason, utcnow()))


@router.post("/federations/{federation_id}/leave", operation_id="leave_federation", responses=_CHANGES)
def leave_federation(
    federation_id: PathId, principal: OperatorPrincipal, session: WriteSession, request: OptionalReason = _NO_REASON
) -> InvitationResponse:
    """Leave the federation with all clients of the organization."""
    return _one(session, service.leave(session, principal, federation_id, request.reason, utcnow()))


@router.post(
    "/federations/{federation_id}/clients",
    status_code=201,
    operation_id="register_client",
    openapi_extra=body_of_at_most(MAX_REGISTRATION_BYTES),
    responses=LOCATION_HEADER | _CHANGES,
)
def register_client(
    federation_id: PathId,
    request: ClientCreate,
    principal: OperatorPrincipal,
    session: WriteSession,
    response: Response,
) -> ClientResponse:
    """Register a data set of one of the organization's workers."""
    client = service.register(session, principal, federation_id, request, utcnow())
    response.headers["Location"] = f"{router.prefix}/clients/{client.id}"
    return client_response(client)


@router.get(
    "/federations/{federation_id}/clients", operation_id="list_clients", responses=problem_responses(400, 403, 404)
)
def list_clients(
    federation_id: PathId, principal: KeyPrincipal, session: ReadSession, page: Paging
) -> Listing[ClientResponse]:
    """List clients by ordinal: all of them for the federation's owner, otherwise those of the own organization."""
    clients = service.clients_of(session, principal, federation_id, page)
    return Listing(items=[client_response(row) for row in clients.rows], next_cursor=clients.next_cursor)


@router.get("/clients/{client_id}", operation_id="show_client", responses=problem_responses(403, 404))
def show_client(client_id: PathId, principal: KeyPrincipal, session: ReadSession) -> ClientResponse:
    """Show a client to its organization and to the federation's owner."""
    return client_response(service.visible_client(session, principal, client_id))


@router.post("/clients/{client_id}/leave", operation_id="leave_with_client", responses=_CHANGES)
def leave_with_client(
    client_id: PathId, principal: OperatorPrincipal, session: WriteSession, request: OptionalReason = _NO_REASON
) -> ClientResponse:
    """Leave the federation with one data set."""
    return client_response(service.leave_client(session, principal, client_id, request.reason))


@router.post("/clients/{client_id}/expel", operation_id="expel_client", responses=_CHANGES)
def expel_client(
    client_id: PathId, principal: OperatorPrincipal, session: WriteSession, request: OptionalReason = _NO_REASON
) -> ClientResponse:
    """Exclude a client (the federation's owner). The reason is shown to its organization."""
    return client_response(service.expel(session, principal, client_id, request.reason))


@router.post("/clients/{client_id}/readmit", operation_id="readmit_client", responses=_CHANGES)
def readmit_client(client_id: PathId, principal: OperatorPrincipal, session: WriteSession) -> ClientResponse:
    """Readmit an expelled client (the federation's owner). It is described again."""
    return client_response(service.readmit(session, principal, client_id))


@router.post("/clients/{client_id}/restore", operation_id="restore_client", responses=_CHANGES)
def restore_client(client_id: PathId, principal: OperatorPrincipal, session: WriteSession) -> ClientResponse:
    """Restore a client that is out, after its owner fixed the cause. It is described again."""
    return client_response(service.restore(session, principal, client_id))


def _one(session: Session, invitation: Invitation) -> InvitationResponse:
    return service.invitation_responses(session, [invitation])[0]


def _listing(session: Session, page: Page[Invitation]) -> Listing[InvitationResponse]:
    return Listing(items=service.invitation_responses(session, page.rows), next_cursor=page.next_cursor)
