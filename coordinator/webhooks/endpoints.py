"""HTTP endpoints of webhooks and their deliveries."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from coordinator.auth.principals import KeyPrincipal, OperatorPrincipal, OwnerPrincipal
from coordinator.db.sessions import ReadSession, WriteSession, utcnow
from coordinator.web.body_limits import PathId
from coordinator.web.etags import IfMatch, set_version
from coordinator.web.pagination import Listing, Paging
from coordinator.web.problem_details import LOCATION_HEADER, problem_responses
from coordinator.web.routes import Route
from coordinator.webhooks import service
from coordinator.webhooks.schemas import (
    DeliveryResponse,
    DeliveryState,
    WebhookCreate,
    WebhookCreated,
    WebhookResponse,
)

router = APIRouter(prefix="/v1/organizations/{organization_id}/webhooks", tags=["organizations"], route_class=Route)
State = Annotated[DeliveryState | None, Query(description="only deliveries in this state")]


@router.post(
    "", status_code=201, operation_id="create_webhook", responses=LOCATION_HEADER | problem_responses(403, 404, 409)
)
def create_webhook(
    organization_id: PathId,
    request: WebhookCreate,
    principal: OwnerPrincipal,
    session: WriteSession,
    response: Response,
) -> WebhookCreated:
    """Create a webhook. Only this response contains its secret, which signs its messages."""
    webhook = service.create(session, principal, organization_id, request, utcnow())
    response.headers["Cache-Control"] = "no-store"
    response.headers["Location"] = f"/v1/organizations/{organization_id}/webhooks/{webhook.id}"
    return WebhookCreated(**WebhookResponse.model_validate(webhook).model_dump(), secret=webhook.secret)


@router.get("", operation_id="list_webhooks", responses=problem_responses(400, 403, 404))
def list_webhooks(
    organization_id: PathId, principal: KeyPrincipal, session: ReadSession, page: Paging
) -> Listing[WebhookResponse]:
    """List the organization's webhooks, without their secrets."""
    webhooks = service.list_for(session, principal, organization_id, page)
    return Listing(
        items=[WebhookResponse.model_validate(row) for row in webhooks.rows], next_cursor=webhooks.next_cursor
    )


@router.get("/{webhook_id}", operation_id="show_webhook", responses=problem_responses(403, 404))
def show_webhook(
    organization_id: PathId, webhook_id: PathId, principal: KeyPrincipal, session: ReadSession, response: Response
) -> WebhookResponse:
    """Show a webhook, without its secret."""
    webhook = service.show(session, principal, organization_id, webhook_id)
    set_version(response, service.version_of(webhook))
    return WebhookResponse.model_validate(webhook)


@router.delete(
    "/{webhook_id}", status_code=204, operation_id="delete_webhook", responses=problem_responses(403, 404, 412)
)
def delete_webhook(
    organization_id: PathId,
    webhook_id: PathId,
    principal: OwnerPrincipal,
    session: WriteSession,
    if_match: IfMatch = None,
) -> None:
    """Delete a webhook with its deliveries."""
    service.delete(session, principal, organization_id, webhook_id, if_match)


@router.get("/{webhook_id}/deliveries", operation_id="list_deliveries", responses=problem_responses(400, 403, 404))
def list_deliveries(
    organization_id: PathId,
    webhook_id: PathId,
    principal: KeyPrincipal,
    session: ReadSession,
    page: Paging,
    state: State = None,
) -> Listing[DeliveryResponse]:
    """List a webhook's deliveries, oldest first."""
    deliveries = service.deliveries_of(session, principal, organization_id, webhook_id, state, page)
    return Listing(
        items=[DeliveryResponse.model_validate(row) for row in deliveries.rows], next_cursor=deliveries.next_cursor
    )


@router.get(
    "/{webhook_id}/deliveries/{delivery_id}", operation_id="show_delivery", responses=problem_responses(403, 404)
)
def show_delivery(
    organization_id: PathId, webhook_id: PathId, delivery_id: PathId, principal: KeyPrincipal, session: ReadSession
) -> DeliveryResponse:
    """Show a delivery."""
    return DeliveryResponse.model_validate(
        service.show_delivery(session, principal, organization_id, webhook_id, delivery_id)
    )


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/redeliver",
    status_code=202,
    operation_id="redeliver",
    responses=problem_responses(403, 404),
)
def redeliver(
    organization_id: PathId,
    webhook_id: PathId,
    delivery_id: PathId,
    principal: OperatorPrincipal,
    session: WriteSession,
    response: Response,
) -> DeliveryResponse:
    """Send a message again under the same id, in any state."""
    delivery = service.redeliver(session, principal, organization_id, webhook_id, delivery_id, utcnow())
    path = f"/v1/organizations/{organization_id}/webhooks/{webhook_id}/deliveries/{delivery_id}"
    response.headers["Location"] = path
    return DeliveryResponse.model_validate(delivery)
