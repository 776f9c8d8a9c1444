"""HTTP endpoints of organizations, API keys, enrollment tokens, ledgers and audit logs."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from coordinator import audit
from coordinator.auth.principals import AdminPrincipal, KeyPrincipal, OperatorPrincipal, OwnerPrincipal
from coordinator.db.sessions import ReadSession, WriteSession, utcnow
from coordinator.models import AuditEntry
from coordinator.organizations import service
from coordinator.organizations.schemas import (
    ApiKeyCreate,
    ApiKeyCreated,
    ApiKeyResponse,
    AuditEntryResponse,
    EnrollmentTokenCreate,
    EnrollmentTokenCreated,
    EnrollmentTokenResponse,
    Ledger,
    OrganizationCreate,
    OrganizationResponse,
    Time,
)
from coordinator.web.body_limits import PathId
from coordinator.web.pagination import Listing, Page, Paging
from coordinator.web.problem_details import LOCATION_HEADER, problem_responses
from coordinator.web.routes import Route

router = APIRouter(prefix="/v1/organizations", tags=["organizations"], route_class=Route)
installation = APIRouter(prefix="/v1", tags=["organizations"], route_class=Route)

Action = Annotated[audit.Action | None, Query(description="only entries of this action")]
Since = Annotated[Time | None, Query(description="only entries of this time and later, RFC 3339 with a time zone")]


@router.post(
    "", status_code=201, operation_id="create_organization", responses=LOCATION_HEADER | problem_responses(403, 409)
)
def create_organization(
    request: OrganizationCreate, principal: AdminPrincipal, session: WriteSession, response: Response
) -> OrganizationResponse:
    """Create an organization (the installation's admin)."""
    organization = service.create(session, principal, request, utcnow())
    response.headers["Location"] = f"{router.prefix}/{organization.id}"
    return OrganizationResponse.model_validate(organization)


@router.get("", operation_id="list_organizations", responses=problem_responses(400, 403))
def list_organizations(principal: KeyPrincipal, session: ReadSession, page: Paging) -> Listing[OrganizationResponse]:
    """List the organizations that this key may see."""
    organizations = service.list_for(session, principal, page)
    items = [OrganizationResponse.model_validate(row) for row in organizations.rows]
    return Listing(items=items, next_cursor=organizations.next_cursor)


@router.get("/{organization_id}", operation_id="show_organization", responses=problem_responses(403, 404))
def show_organization(organization_id: PathId, principal: KeyPrincipal, session: ReadSession) -> OrganizationResponse:
    """Show an organization."""
    return OrganizationResponse.model_validate(service.show_to(session, principal, organization_id))


@router.post(
    "/{organization_id}/api-keys",
    status_code=201,
    operation_id="create_api_key",
    responses=problem_responses(403, 404),
)
def create_api_key(
    organization_id: PathId,
    request: ApiKeyCreate,
    principal: OwnerPrincipal,
    session: WriteSession,
    response: Response,
) -> ApiKeyCreated:
    """Create an API key. Only this response contains its text."""
    key, text = service.create_key(session, principal, organization_id, request, utcnow())
    response.headers["Cache-Control"] = "no-store"
    return ApiKeyCreated(**ApiKeyResponse.model_validate(key).model_dump(), key=text)


@router.get("/{organization_id}/api-keys", operation_id="list_api_keys", responses=problem_responses(400, 403, 404))
def list_api_keys(
    organization_id: PathId, principal: KeyPrincipal, session: ReadSession, page: Paging
) -> Listing[ApiKeyResponse]:
    """List the organization's API keys, without their secrets."""
    keys = service.list_keys(session, principal, organization_id, page)
    return Listing(items=[ApiKeyResponse.model_validate(row) for row in keys.rows], next_cursor=keys.next_cursor)


@router.delete(
    "/{organization_id}/api-keys/{key_id}",
    status_code=204,
    operation_id="revoke_api_key",
    responses=problem_responses(403, 404),
)
def revoke_api_key(organization_id: PathId, key_id: PathId, principal: OwnerPrincipal, session: WriteSession) -> None:
    """Revoke an API key, effective with the next request."""
    service.revoke_key(session, principal, organization_id, key_id, utcnow())


@router.post(
    "/{organization_id}/enrollment-tokens",
    status_code=201,
    operation_id="create_enrollment_token",
    responses=problem_responses(403, 404),
)
def create_enrollment_token(
    organization_id: PathId,
    request: EnrollmentTokenCreate,
    principal: OperatorPrincipal,
    session: WriteSession,
    response: Response,
) -> EnrollmentTokenCreated:
    """Create an enrollment token for workers. Only this response contains its text."""
    token, text = service.create_token(session, principal, organization_id, request, utcnow())
    response.headers["Cache-Control"] = "no-store"
    return EnrollmentTokenCreated(**EnrollmentTokenResponse.model_validate(token).model_dump(), token=text)


@router.get(
    "/{organization_id}/enrollment-tokens",
    operation_id="list_enrollment_tokens",
    responses=problem_responses(400, 403, 404),
)
def list_enrollment_tokens(
    organization_id: PathId, principal: KeyPrincipal, session: ReadSession, page: Paging
) -> Listing[EnrollmentTokenResponse]:
    """List the organization's enrollment tokens, without their secrets."""
    tokens = service.list_tokens(session, principal, organization_id, page)
    items = [EnrollmentTokenResponse.model_validate(row) for row in tokens.rows]
    return Listing(items=items, next_cursor=tokens.next_cursor)


@router.delete(
    "/{organization_id}/enrollment-tokens/{token_id}",
    status_code=204,
    operation_id="revoke_enrollment_token",
    responses=problem_responses(403, 404),
)
def revoke_enrollment_token(
    organization_id: PathId, token_id: PathId, principal: OperatorPrincipal, session: WriteSession
) -> None:
    """Revoke an enrollment token. Workers that enrolled with it stay."""
    service.revoke_token(session, principal, organization_id, token_id, utcnow())


@router.get(
    "/{organization_id}/ledger",
    operation_id="show_organization_ledger",
    responses=problem_responses(400, 403, 404),
)
def show_organization_ledger(
    organization_id: PathId, principal: KeyPrincipal, session: ReadSession, page: Paging
) -> Ledger:
    """Show the organization's rounds, examples, bytes, seconds and updates, by federation and in total."""
    return service.ledger_of(session, principal, organization_id, page)


@router.get(
    "/{organization_id}/audit", operation_id="list_organization_audit", responses=problem_responses(400, 403, 404)
)
def list_organization_audit(
    organization_id: PathId,
    principal: KeyPrincipal,
    session: ReadSession,
    page: Paging,
    action: Action = None,
    since: Since = None,
) -> Listing[AuditEntryResponse]:
    """List the organization's audit log, oldest entry first (its owners)."""
    return _entries(service.audit_of(session, principal, organization_id, action, since, page))


@installation.get("/audit", operation_id="list_installation_audit", responses=problem_responses(400, 403))
def list_installation_audit(
    principal: AdminPrincipal, session: ReadSession, page: Paging, action: Action = None, since: Since = None
) -> Listing[AuditEntryResponse]:
    """List the installation's audit log: its keys and organizations (the installation's admin)."""
    return _entries(service.audit_of_installation(session, action, since, page))


def _entries(page: Page[AuditEntry]) -> Listing[AuditEntryResponse]:
    items = [AuditEntryResponse(**audit.document_of(row), hash=row.hash) for row in page.rows]
    return Listing(items=items, next_cursor=page.next_cursor)
