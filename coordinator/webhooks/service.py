"""Webhook service: webhooks and their deliveries.

A delivery is sent at least once. If its task dies, it is sent again after the claim on its webhook expires.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from sqlalchemy.orm import Session

from coordinator import audit
from coordinator.auth.principals import Principal, require_role
from coordinator.db.sessions import lock_row
from coordinator.errors import Conflict, FieldError, NotFound, Unprocessable
from coordinator.models import Delivery, Organization, Webhook
from coordinator.models.base import new_id
from coordinator.organizations import service as organizations
from coordinator.queue.wakeups import DELIVER, nudge
from coordinator.settings import get_settings
from coordinator.web import etags
from coordinator.web.pagination import Page, PageRequest
from coordinator.webhooks import lifecycle, repository
from coordinator.webhooks.schemas import DeliveryState, WebhookCreate
from coordinator.webhooks.sender import Outcome

MOST_WEBHOOKS = 10
_MARGIN_SECONDS = 30.0


# ---- for the API


def create(
    session: Session, principal: Principal, organization_id: str, request: WebhookCreate, now: datetime
) -> Webhook:
    """Creates a webhook. Raises NotFound, Forbidden, Unprocessable (the URL), Conflict (too many)."""
    require_role(principal, "owner", organization_id=organization_id)
    organizations.show(session, organization_id)
    fault = lifecycle.fault_of_url(request.url, get_settings().webhook_private_addresses)
    if fault is not None:
        raise Unprocessable("url_refused", f"`/url` {fault}.", errors=[FieldError(pointer="/url", detail=fault)])
    lock_row(session, Organization, organization_id)  # so that concurrent requests cannot exceed the limit
    if repository.count(session, organization_id) >= MOST_WEBHOOKS:
        raise Conflict("too_many_webhooks", f"An organization has at most {MOST_WEBHOOKS} webhooks. Delete one.")
    webhook = Webhook(
        id=new_id("whk"),
        organization_id=organization_id,
        url=request.url,
        events=sorted(set(request.events)),
        secret=lifecycle.new_secret(),
        created_at=now,
    )
    session.add(webhook)
    _audit(session, principal, "webhook.created", webhook)
    return webhook


def show(session: Session, principal: Principal, organization_id: str, webhook_id: str) -> Webhook:
    """The webhook, for owners and operators. Raises NotFound, Forbidden."""
    require_role(principal, "owner", "operator", organization_id=organization_id)
    webhook = session.get(Webhook, webhook_id)
    if webhook is None or webhook.organization_id != organization_id:
        raise NotFound("not_found", "There is no webhook with this id in this organization.")
    return webhook


def list_for(session: Session, principal: Principal, organization_id: str, page: PageRequest) -> Page[Webhook]:
    """The organization's webhooks, for owners and operators. Raises NotFound, Forbidden."""
    require_role(principal, "owner", "operator", organization_id=organization_id)
    organizations.show(session, organization_id)
    return page.rows(session, repository.webhooks(organization_id), Webhook.id)


def version_of(webhook: Webhook) -> str:
    """Version for conditional requests."""
    return etags.version_of(webhook.url, webhook.events)


def delete(
    session: Session, principal: Principal, organization_id: str, webhook_id: str, if_match: str | None = None
) -> None:
    """Deletes the webhook with its deliveries. Raises NotFound, Forbidden, PreconditionFailed."""
    require_role(principal, "owner", organization_id=organization_id)
    webhook = show(session, principal, organization_id, webhook_id)
    etags.check_match(if_match, version_of(webhook))
    _audit(session, principal, "webhook.deleted", webhook)
    session.delete(webhook)


def _audit(session: Session, principal: Principal, action: audit.Action, webhook: Webhook) -> None:
    host = urlsplit(webhook.url).hostname  # the rest of the URL may be secret
    audience = [webhook.organization_id]
    audit.append(session, principal.id, action, webhook.id, audience, host=host, events=webhook.events)


def deliveries_of(
    session: Session,
    principal: Principal,
    organization_id: str,
    webhook_id: str,
    state: DeliveryState | None,
    page: PageRequest,
) -> Page[Delivery]:
    """The webhook's deliveries, oldest first, for owners and operators. Raises NotFound, Forbidden."""
    webhook = show(session, principal, organization_id, webhook_id)
    return page.rows(session, repository.deliveries(webhook.id, state), Delivery.number)


def show_delivery(
    session: Session, principal: Principal, organization_id: str, webhook_id: str, delivery_id: str
) -> Delivery:
    """One delivery, for owners and operators. Raises NotFound, Forbidden."""
    webhook = show(session, principal, organization_id, webhook_id)
    delivery = repository.delivery(session, webhook.id, delivery_id)
    if delivery is None:
        raise NotFound("not_found", "There is no delivery with this id. Ended deliveries are deleted after a while.")
    return delivery


def redeliver(
    session: Session, principal: Principal, organization_id: str, webhook_id: str, delivery_id: str, now: datetime
) -> Delivery:
    """Schedules the delivery again under the same id, in any state. Raises NotFound, Forbidden."""
    webhook = show(session, principal, organization_id, webhook_id)
    delivery = show_delivery(session, principal, organization_id, webhook.id, delivery_id)
    delivery.state, delivery.attempts, delivery.next_attempt_at, delivery.ended_at = "pending", 0, now, None
    delivery.give_up_at = now + timedelta(seconds=get_settings().webhook_give_up_seconds)
    webhook.paused_until = None
    nudge(session, DELIVER, webhook.organization_id, webhook.id)
    return delivery


# ---- for tasks


@dataclass(frozen=True, slots=True)
class DeliveryClaim:
    """The exclusive right of one task to send a delivery. `until` identifies the claim."""

    webhook_id: str
    number: int
    until: datetime
    url: str
    headers: dict[str, str]
    body: bytes
    about: dict[str, str]
    """Fields of its log lines."""


def claim(session: Session, webhook_id: str, now: datetime) -> DeliveryClaim | None:
    """Claims the webhook's next due delivery. None if there is none, or if the webhook is claimed or paused."""
    webhook = lock_row(session, Webhook, webhook_id)
    if webhook is None or any(
        time is not None and time > now for time in (webhook.claimed_until, webhook.paused_until)
    ):
        return None
    due = repository.next_due(session, webhook_id, now)
    if due is None:
        return None
    due.attempts += 1
    webhook.claimed_until = now + timedelta(seconds=get_settings().webhook_timeout_seconds + _MARGIN_SECONDS)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "Fedloom",
        "Fedloom-Delivery": due.id,
        "Fedloom-Event": due.event,
        **lifecycle.signature_headers(webhook.secret, due.id, now, due.body),
    }
    about = {"webhook_id": webhook.id, "federation_id": due.federation_id, "delivery_id": due.id, "type": due.event}
    return DeliveryClaim(
        webhook.id, due.number, webhook.claimed_until, webhook.url, headers, due.body.encode(), about
    )


def record(session: Session, claim: DeliveryClaim, outcome: Outcome, now: datetime, jitter: float) -> None:
    """Records the outcome of an attempt, unless another task took over the webhook or it was deleted."""
    webhook = lock_row(session, Webhook, claim.webhook_id)
    delivery = session.get(Delivery, claim.number)
    if webhook is None or delivery is None or webhook.claimed_until != claim.until:
        return
    webhook.claimed_until = None
    delivery.last_status, delivery.last_error = outcome.status, outcome.error
    if outcome.error is None:
        delivery.state, delivery.next_attempt_at, delivery.ended_at = "delivered", None, now
        webhook.paused_until = None
        return
    pause = lifecycle.pause_seconds(max(delivery.attempts, 1), get_settings().webhook_retry_seconds, jitter)
    delivery.next_attempt_at = now + timedelta(seconds=pause)
    if outcome.status is None:
        webhook.paused_until = now + timedelta(seconds=min(pause, lifecycle.LONGEST_SILENCE_SECONDS))
    session.flush()
    repository.give_up(session, webhook.id, now)


def due(session: Session, now: datetime) -> list[tuple[str, str]]:
    """(organization id, webhook id) of the webhooks with a due delivery."""
    return repository.due(session, now)


def forget(session: Session, now: datetime) -> None:
    """Deletes deliveries that ended more than `webhook_keep_seconds` ago."""
    repository.forget(session, now - timedelta(seconds=get_settings().webhook_keep_seconds))
