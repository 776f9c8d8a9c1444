"""Background tasks of webhooks, which send outside any transaction.

Each task may be lost, duplicated or run twice at once.
"""

import structlog

from coordinator.db.sessions import utcnow, writing
from coordinator.queue.wakeups import DELIVER, FORGET_DELIVERIES, celery
from coordinator.settings import get_settings
from coordinator.webhooks import sender, service
from coordinator.webhooks.deliverer import Deliverer

_log = structlog.get_logger(__name__)


def send_next(webhook_id: str) -> bool:
    """Sends the webhook's oldest due delivery. False if there is none, or another process has claimed the webhook."""
    with writing() as session:
        claim = service.claim(session, webhook_id, utcnow())
    if claim is None:
        return False
    settings = get_settings()
    outcome = sender.send(
        claim.url,
        claim.headers,
        claim.body,
        settings.webhook_timeout_seconds,
        settings.webhook_private_addresses,
    )
    with writing() as session:
        service.record(session, claim, outcome, utcnow(), sender.jitter())
    if outcome.error is None:
        _log.info("webhook_delivered", status=outcome.status, **claim.about)
    else:
        _log.warning("webhook_not_delivered", reason=outcome.error, **claim.about)
    return True


deliverer = Deliverer(send_next)
"""The process's deliverer, which runs in Celery workers."""


@celery.task(name=DELIVER)
def deliver(organization_id: str, webhook_id: str) -> None:
    """Passes the webhook to the deliverer. If none runs, sends the due deliveries one after the other."""
    if deliverer.hand(organization_id, webhook_id):
        return
    while send_next(webhook_id):
        pass


@celery.task(name=FORGET_DELIVERIES)
def forget() -> None:
    """Deletes old deliveries."""
    with writing() as session:
        service.forget(session, utcnow())
