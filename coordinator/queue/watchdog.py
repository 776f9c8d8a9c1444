"""Watchdog that reconnects a Celery consumer when messages wait but none is delivered.

Celery drops an acknowledgment that fails while the broker is away, but still counts its message as being processed.
Once these fill its prefetch limit it never requests another message. It reports no error, and the queue grows. The
watchdog therefore compares the queue with the consumer every few seconds.
"""

from typing import Any

import structlog
from celery import bootsteps
from celery.worker import state

CHECK_SECONDS = 5.0
_log = structlog.get_logger(__name__)


class ConsumerStalled(ConnectionError):
    """Messages wait, there is capacity, and none is taken. Celery handles it as a lost connection."""


class Watchdog(bootsteps.StartStopStep):
    """Step of Celery's consumer. Two consecutive checks must agree before the connection is dropped."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    _timer: Any = None

    def include_if(self, parent: Any) -> bool:
        """Only with an event loop, which propagates a timer's exception; the file transport has no loop."""
        return parent.hub is not None

    def start(self, parent: Any) -> None:
        """Starts checking the new connection."""
        self._stalled_at: int | None = None
        self._timer = parent.timer.call_repeatedly(CHECK_SECONDS, self._check, (parent,))

    def stop(self, parent: Any) -> None:
        """Stops checking. Celery also stops steps that it never started, if no connection was made."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self, consumer: Any) -> None:
        free = consumer.qos.value - len(state.reserved_requests)
        total = state.all_total_count[0]
        waiting = _waiting_messages(consumer) if free > 0 else 0
        if waiting and self._stalled_at == total:
            _log.error("broker_not_heard", waiting=waiting, free=free)
            raise ConsumerStalled(f"{waiting} messages wait and none was taken for {CHECK_SECONDS:.0f} s")
        self._stalled_at = total if waiting else None


def _waiting_messages(consumer: Any) -> int:
    channel = consumer.task_consumer.channel
    return sum(channel.queue_declare(queue.name).message_count for queue in consumer.task_consumer.queues)
