"""Wake-up messages for background tasks: the Celery object, and messages sent after a commit.

The database records all due work. A message only wakes a task, so one that cannot be sent is logged and dropped. The
reconciler sends messages for all due work again.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import structlog
from celery import Celery
from kombu.pools import producers
from sqlalchemy.orm import Session

from coordinator.db.sessions import after_commit
from coordinator.queue import file_transport
from coordinator.settings import Settings, get_settings

ADVANCE_ROUND = "rounds.advance"
AGGREGATE_SHARD = "rounds.aggregate_shard"
ADVANCE_FEDERATION = "federations.advance"
RECONCILE = "federations.reconcile"
ASSEMBLE = "artifacts.assemble"
RESUME_UPLOADS = "artifacts.resume"
COLLECT = "artifacts.collect"
MEND = "rounds.mend"
RENEW_PROCESS = "processes.renew"
DELIVER = "webhooks.deliver"
FORGET_DELIVERIES = "webhooks.forget"

_PENDING = "fedloom_nudges"
_REDIS_SECONDS = 5
_REDIS_OPTIONS = {
    "socket_connect_timeout": _REDIS_SECONDS,
    "socket_timeout": _REDIS_SECONDS,
    "socket_keepalive": True,
    # A request must not wait for a broker that is away: the reconciler sends the message again.
    "max_retries": 1,
    "interval_start": 0,
    # Messages that a dead process had reserved are redelivered; doing the work twice does no harm.
    "visibility_timeout": 60,
}
_log = structlog.get_logger(__name__)

Nudge = tuple[str, tuple[str, ...]]


def _configuration(settings: Settings) -> dict[str, Any]:
    return {
        "broker_url": settings.broker + "localhost" * settings.embedded,
        "broker_transport_options": (
            file_transport.transport_options(settings.queue_folder) if settings.embedded else _REDIS_OPTIONS
        ),
        "broker_connection_retry_on_startup": True,
        "task_publish_retry": False,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        "worker_prefetch_multiplier": 1,
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "timezone": "UTC",
        "enable_utc": True,
    }


celery = Celery("coordinator", set_as_current=True)
celery.add_defaults(lambda: _configuration(get_settings()))


def nudge(session: Session, task_name: str, *ids: str) -> None:
    """Sends the task once after the session's commit, however often this is called before it."""
    pending: dict[Nudge, None] | None = session.info.get(_PENDING)
    if pending is None:
        pending = session.info[_PENDING] = {}
        after_commit(session, partial(_send_all, pending))
    pending[(task_name, ids)] = None


def _send_all(pending: Iterable[Nudge]) -> None:
    for task_name, ids in pending:
        send(task_name, *ids)


def send(task_name: str, *ids: str) -> None:
    """Sends the task now. Never raises: a message that cannot be sent is logged and dropped."""
    try:
        # kombu looks up the pool by the connection's settings; Celery's own pool keeps the first settings.
        with producers[celery.connection_for_write()].acquire(block=True) as producer:
            celery.send_task(task_name, args=ids, ignore_result=True, producer=producer)
    except Exception as error:  # whatever the broker's client raises, the commit stands
        _log.warning("nudge_lost", task=task_name, ids=ids, reason=repr(error))


def reconfigure() -> None:
    """Applies the present settings to the messages that follow."""
    celery.conf.update(_configuration(get_settings()))
