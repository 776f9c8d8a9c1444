"""Webhooks are made, shown and deleted; their deliveries are claimed, recorded, and sent again when asked for.

A delivery is sent at least once: one whose task died is sent again when the claim on its webhook has passed.
"""

import secrets
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

SECRET_PREFIX = "flw_"  # noqa: S105 - what a secret begins with
MOST_WEBHOOKS = 10
_MARGIN_SECONDS = 30.0


# ---- for people


def create(
    session: Session, principal: Principal, organization_id: str, wish: WebhookCreate, now: datetime
) -> Webhook:
    """A new webhook with its secret. Raises NotFound, Forbidden, Unprocessable (the URL), Conflict (too many)."""
    require_role(principal, "owner", organization_id=organization_id)
    organizations.show(session, organization_id)
    fault = lifecycle.fault_of_url(wish.url, get_settings().webhook_private_addresses)
    if fault is not None:
        raise Unprocessable("url_refused", f"`/url` {fault}.", errors=[FieldError(pointer="/url", detail=fault)])
    lock_row(session, Organization, organization_id)  # two requests at once do not both make the last one
    if repository.count(session, organization_id) >= MOST_WEBHOOKS:
        raise Conflict("too_many_webhooks", f"An organization has at most {MOST_WEBHOOKS} webhooks. Delete one.")
    webhook = Webhook(
        id=new_id("whk"),
        organization_id=organization_id,
        url=wish.url,
        events=sorted(set(wish.events)),
        secret=SECRET_PREFIX + secrets.token_hex(32),
        created_at=now,
    )
    session.add(webhook)
    _audit(session, principal, "webhook.created", webhook)
    return webhook


def show(session: Session, principal: Principal, organization_id: str, webhook_id: str) -> Webhook:
    """The webhook, to owners and operators. Raises NotFound, Forbidden."""
    require_role(principal, "owner", "operator", organization_id=organization_id)
    webhook = session.get(Webhook, webhook_id)
    if webhook is None or webhook.organization_id != organization_id:
        raise NotFound("not_found", "There is no webhook with this id in this organization.")
    return webhook


def list_for(session: Session, principal: Principal, organization_id: str, page: PageRequest) -> Page[Webhook]:
    """The organization's webhooks, to owners and operators. Raises NotFound, Forbidden."""
    require_role(principal, "owner", "operator", organization_id=organization_id)
    organizations.show(session, organization_id)
    return page.rows(session, repository.webhooks(organization_id), Webhook.id)


def version_of(webhook: Webhook) -> str:
    """What a change of it is based on."""
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
    host = urlsplit(webhook.url).hostname  # the rest of a URL may be a secret
    of = [webhook.organization_id]
    audit.append(session, principal.id, action, webhook.id, of, host=host, events=webhook.events)


def deliveries_of(
    session: Session,
    principal: Principal,
    organization_id: str,
    webhook_id: str,
    state: DeliveryState | None,
    page: PageRequest,
) -> Page[Delivery]:
    """The webhook's deliveries, oldest first, to owners and operators. Raises NotFound, Forbidden."""
    webhook = show(session, principal, organization_id, webhook_id)
    return page.rows(session, repository.deliveries(webhook.id, state), Delivery.number)


def delivery(
    session: Session, principal: Principal, organization_id: str, webhook_id: str, delivery_id: str
) -> Delivery:
    """One delivery, to owners and operators. Raises NotFound, Forbidden."""
    webhook = show(session, principal, organization_id, webhook_id)
    found = repository.delivery(session, webhook.id, delivery_id)
    if found is None:
        raise NotFound("not_found", "There is no delivery with this id; those that ended are kept for a while only.")
    return found


def redeliver(
    session: Session, principal: Principal, organization_id: str, webhook_id: str, delivery_id: str, now: datetime
) -> Delivery:
    """Sends the same message again, under the same id, whatever became of it. Raises NotFound, Forbidden."""
    webhook = show(session, principal, organization_id, webhook_id)
    again = delivery(session, principal, organization_id, webhook.id, delivery_id)
    again.state, again.attempts, again.next_attempt_at, again.ended_at = "pending", 0, now, None
    again.give_up_at = now + timedelta(seconds=get_settings().webhook_give_up_seconds)
    webhook.paused_until = None
    nudge(session, DELIVER, webhook.organization_id, webhook.id)
    return again


# ---- for tasks


@dataclass(frozen=True, slots=True)
class Claimed:
    """A message that one task may send; `until` names the claim."""

    webhook_id: str
    number: int
    until: datetime
    url: str
    headers: dict[str, str]
    body: bytes
    about: dict[str, str]
    """What a line of the log says it is about."""


def claim(session: Session, webhook_id: str, now: datetime) -> Claimed | None:
    """The webhook's next message, if there is one and nobody sends to it just now."""
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
    body = due.body.encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "Fedloom",
        "Fedloom-Delivery": due.id,
        "Fedloom-Event": due.event,
        "Fedloom-Signature": lifecycle.signature(webhook.secret, now, body),
    }
    about = {"webhook_id": webhook.id, "federation_id": due.federation_id, "delivery_id": due.id, "type": due.event}
    return Claimed(webhook.id, due.number, webhook.claimed_until, webhook.url, headers, body, about)


def record(session: Session, claimed: Claimed, outcome: Outcome, now: datetime, jitter: float) -> None:
    """What came of an attempt; nothing if somebody else took the webhook over, or it was deleted."""
    webhook = lock_row(session, Webhook, claimed.webhook_id)
    sent = session.get(Delivery, claimed.number)
    if webhook is None or sent is None or webhook.claimed_until != claimed.until:
        return
    webhook.claimed_until = None
    sent.last_status, sent.last_error = outcome.status, outcome.error
    if outcome.error is None:
        sent.state, sent.next_attempt_at, sent.ended_at = "delivered", None, now
        webhook.paused_until = None
        return
    pause = lifecycle.pause_seconds(max(sent.attempts, 1), get_settings().webhook_retry_seconds, jitter)
    sent.next_attempt_at = now + timedelta(seconds=pause)
    if outcome.status is None:
        webhook.paused_until = now + timedelta(seconds=min(pause, lifecycle.LONGEST_SILENCE_SECONDS))
    session.flush()
    repository.give_up(session, webhook.id, now)


def due(session: Session, now: datetime) -> list[tuple[str, str]]:
    """Organization and id of the webhooks that have something to send now."""
    return repository.due(session, now)


def forget(session: Session, now: datetime) -> None:
    """Deletes deliveries that ended more than `webhook_keep_seconds` ago."""
    repository.forget(session, now - timedelta(seconds=get_settings().webhook_keep_seconds))
