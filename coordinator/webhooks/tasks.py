"""Sends what is due, outside any transaction. Each task may be lost, doubled or run twice at once."""

import structlog

from coordinator.db.sessions import utcnow, writing
from coordinator.queue.wakeups import DELIVER, FORGET_DELIVERIES, celery
from coordinator.settings import get_settings
from coordinator.webhooks import sender, service
from coordinator.webhooks.deliverer import Deliverer

_log = structlog.get_logger(__name__)


def send_next(webhook_id: str) -> bool:
    """Sends the webhook's oldest message that is due. False: none is, or another process sends to it now."""
    with writing() as session:
        claimed = service.claim(session, webhook_id, utcnow())
    if claimed is None:
        return False
    settings = get_settings()
    outcome = sender.send(
        claimed.url,
        claimed.headers,
        claimed.body,
        settings.webhook_timeout_seconds,
        settings.webhook_private_addresses,
    )
    with writing() as session:
        service.record(session, claimed, outcome, utcnow(), sender.jitter())
    if outcome.error is None:
        _log.info("webhook_delivered", status=outcome.status, **claimed.about)
    else:
        _log.warning("webhook_not_delivered", reason=outcome.error, **claimed.about)
    return True


deliverer = Deliverer(send_next)
"""Of this process; it runs where a Celery worker does."""


@celery.task(name=DELIVER)
def deliver(organization_id: str, webhook_id: str) -> None:
    """Hands the webhook to the deliverer; where none runs, sends its due messages itself, one after the other."""
    if deliverer.hand(organization_id, webhook_id):
        return
    while send_next(webhook_id):
        pass


@celery.task(name=FORGET_DELIVERIES)
def forget() -> None:
    """Deletes old deliveries."""
    with writing() as session:
        service.forget(session, utcnow())
