"""HTTP for organizations, API keys and enrollment tokens."""

from fastapi import APIRouter, Response

from coordinator.database import ReadSession, WriteSession, utcnow
from coordinator.organizations import service
from coordinator.organizations.schemas import (
    ApiKeyAnswer,
    ApiKeyCreate,
    ApiKeyCreated,
    EnrollmentTokenAnswer,
    EnrollmentTokenCreate,
    EnrollmentTokenCreated,
    OrganizationAnswer,
    OrganizationCreate,
)
from coordinator.pagination import Listing, Paging
from coordinator.problems import problem_responses
from coordinator.routes import Route
from coordinator.security import AdminPrincipal, KeyPrincipal

router = APIRouter(prefix="/v1/organizations", tags=["organizations"], route_class=Route)


@router.post("", status_code=201, operation_id="create_organization", responses=problem_responses(403, 409))
def create_organization(
    request: OrganizationCreate, principal: AdminPrincipal, session: WriteSession
) -> OrganizationAnswer:
    """Create an organization (the installation's admin)."""
    return OrganizationAnswer.model_validate(service.create(session, request, utcnow()))


@router.get("", operation_id="list_organizations", responses=problem_responses(400, 403))
def list_organizations(principal: KeyPrincipal, session: ReadSession, page: Paging) -> Listing[OrganizationAnswer]:
    """List the organizations that this key may see."""
    found = service.list_for(session, principal, page)
    items = [OrganizationAnswer.model_validate(row) for row in found.rows]
    return Listing(items=items, next_cursor=found.next_cursor)


@router.get("/{organization_id}", operation_id="show_organization", responses=problem_responses(403, 404))
def show_organization(organization_id: str, principal: KeyPrincipal, session: ReadSession) -> OrganizationAnswer:
    """Show an organization."""
    return OrganizationAnswer.model_validate(service.show_to(session, principal, organization_id))


@router.post(
    "/{organization_id}/api-keys",
    status_code=201,
    operation_id="create_api_key",
    responses=problem_responses(403, 404),
)
def create_api_key(
    organization_id: str, request: ApiKeyCreate, principal: KeyPrincipal, session: WriteSession, response: Response
) -> ApiKeyCreated:
    """Create an API key. Its text is in this answer alone."""
    key, text = service.create_key(session, principal, organization_id, request, utcnow())
    response.headers["Cache-Control"] = "no-store"
    return ApiKeyCreated(**ApiKeyAnswer.model_validate(key).model_dump(), key=text)


@router.get("/{organization_id}/api-keys", operation_id="list_api_keys", responses=problem_responses(400, 403, 404))
def list_api_keys(
    organization_id: str, principal: KeyPrincipal, session: ReadSession, page: Paging
) -> Listing[ApiKeyAnswer]:
    """List the organization's API keys, without their secrets."""
    found = service.list_keys(session, principal, organization_id, page)
    return Listing(items=[ApiKeyAnswer.model_validate(row) for row in found.rows], next_cursor=found.next_cursor)


@router.delete(
    "/{organization_id}/api-keys/{key_id}",
    status_code=204,
    operation_id="revoke_api_key",
    responses=problem_responses(403, 404),
)
def revoke_api_key(organization_id: str, key_id: str, principal: KeyPrincipal, session: WriteSession) -> None:
    """Revoke an API key, from the next request on."""
    service.revoke_key(session, principal, organization_id, key_id, utcnow())


@router.post(
    "/{organization_id}/enrollment-tokens",
    status_code=201,
    operation_id="create_enrollment_token",
    responses=problem_responses(403, 404),
)
def create_enrollment_token(
    organization_id: str,
    request: EnrollmentTokenCreate,
    principal: KeyPrincipal,
    session: WriteSession,
    response: Response,
) -> EnrollmentTokenCreated:
    """Create an enrollment token for workers. Its text is in this answer alone."""
    token, text = service.create_token(session, principal, organization_id, request, utcnow())
    response.headers["Cache-Control"] = "no-store"
    return EnrollmentTokenCreated(**EnrollmentTokenAnswer.model_validate(token).model_dump(), token=text)


@router.get(
    "/{organization_id}/enrollment-tokens",
    operation_id="list_enrollment_tokens",
    responses=problem_responses(400, 403, 404),
)
def list_enrollment_tokens(
    organization_id: str, principal: KeyPrincipal, session: ReadSession, page: Paging
) -> Listing[EnrollmentTokenAnswer]:
    """List the organization's enrollment tokens, without their secrets."""
    found = service.list_tokens(session, principal, organization_id, page)
    items = [EnrollmentTokenAnswer.model_validate(row) for row in found.rows]
    return Listing(items=items, next_cursor=found.next_cursor)


@router.delete(
    "/{organization_id}/enrollment-tokens/{token_id}",
    status_code=204,
    operation_id="revoke_enrollment_token",
    responses=problem_responses(403, 404),
)
def revoke_enrollment_token(
    organization_id: str, token_id: str, principal: KeyPrincipal, session: WriteSession
) -> None:
    """Revoke an enrollment token. Workers that enrolled with it stay."""
    service.revoke_token(session, principal, organization_id, token_id, utcnow())
