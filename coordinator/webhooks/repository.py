"""Queries over webhooks and deliveries. Only `service` uses them."""

from datetime import datetime

from sqlalchemy import Select, delete, func, or_, select, update
from sqlalchemy.orm import Session

from coordinator.models import Delivery, Webhook


def webhooks(organization_id: str) -> Select[Webhook]:
    """The organization's webhooks."""
    return select(Webhook).where(Webhook.organization_id == organization_id)


def count(session: Session, organization_id: str) -> int:
    """Number of the organization's webhooks."""
    statement = select(func.count()).select_from(Webhook).where(Webhook.organization_id == organization_id)
    return session.scalar(statement) or 0


def deliveries(webhook_id: str, state: str | None) -> Select[Delivery]:
    """The webhook's deliveries, or only those in one state."""
    statement = select(Delivery).where(Delivery.webhook_id == webhook_id)
    return statement if state is None else statement.where(Delivery.state == state)


def delivery(session: Session, webhook_id: str, delivery_id: str) -> Delivery | None:
    """One delivery of the webhook."""
    return session.scalars(deliveries(webhook_id, None).where(Delivery.id == delivery_id)).one_or_none()


def next_due(session: Session, webhook_id: str, now: datetime) -> Delivery | None:
    """The webhook's oldest delivery that is due."""
    statement = deliveries(webhook_id, "pending").where(Delivery.next_attempt_at <= now)
    return session.scalars(statement.order_by(Delivery.number).limit(1)).one_or_none()


def due(session: Session, now: datetime) -> list[tuple[str, str]]:
    """(organization id, webhook id) of the webhooks with a due delivery that are neither paused nor claimed."""
    statement = (
        select(Webhook.organization_id, Webhook.id)
        .join(Delivery, Delivery.webhook_id == Webhook.id)
        .where(Delivery.state == "pending", Delivery.next_attempt_at <= now)
        .where(or_(Webhook.paused_until.is_(None), Webhook.paused_until <= now))
        .where(or_(Webhook.claimed_until.is_(None), Webhook.claimed_until <= now))
    )
    return [(row.organization_id, row.id) for row in session.execute(statement.distinct())]


def give_up(session: Session, webhook_id: str, now: datetime) -> None:
    """Fails the webhook's pending deliveries whose `give_up_at` has passed."""
    is_pending = (Delivery.webhook_id == webhook_id) & (Delivery.state == "pending")
    statement = update(Delivery).where(is_pending, Delivery.give_up_at <= now)
    session.execute(statement.values(state="failed", next_attempt_at=None, ended_at=now))


def forget(session: Session, before: datetime) -> None:
    """Deletes deliveries that ended before that time."""
    session.execute(delete(Delivery).where(Delivery.state != "pending", Delivery.ended_at < before))
