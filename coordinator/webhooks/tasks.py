"""Sends what is due, outside any transaction. Each task may be lost, doubled or run twice at once."""

import time

import structlog

from coordinator.database import utcnow, writing
from coordinator.nudge import DELIVER, FORGET_DELIVERIES, celery, send
from coordinator.settings import get_settings
from coordinator.webhooks import sender, service

TURN_SECONDS = 10.0
"""After these, other work has its turn."""
_log = structlog.get_logger(__name__)


@celery.task(name=DELIVER)
def deliver(webhook_id: str) -> None:
    """Sends the webhook's messages that are due, one after the other."""
    end_at = time.monotonic() + TURN_SECONDS
    while time.monotonic() < end_at:
        with writing() as session:
            claimed = service.claim(session, webhook_id, utcnow())
        if claimed is None:
            return
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
    send(DELIVER, webhook_id)


@celery.task(name=FORGET_DELIVERIES)
def forget() -> None:
    """Deletes old deliveries."""
    with writing() as session:
        service.forget(session, utcnow())
