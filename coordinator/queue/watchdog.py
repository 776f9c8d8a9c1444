"""Has a background process that no longer hears the broker connect anew.

Celery forgets an acknowledgement that fails while the broker is away, yet goes on counting its message as one it is
working on. With as many of those as it works on at once it never asks for another: no error, no end, and the queue
grows. So it looks at the queue itself every few seconds.
"""

from typing import Any

import structlog
from celery import bootsteps
from celery.worker import state

LOOK_SECONDS = 5.0
_log = structlog.get_logger(__name__)


class ConsumerStalled(ConnectionError):
    """Messages wait, a place is free, and none is taken: to Celery a lost connection like any other."""


class Watchdog(bootsteps.StartStopStep):
    """A step of Celery's consumer. Two looks in a row must find the same before the connection is given up."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    _timer: Any = None

    def include_if(self, parent: Any) -> bool:
        """Where no event loop hands on what a timer raises there is no broker to lose either: files."""
        return parent.hub is not None

    def start(self, parent: Any) -> None:
        """Looks from now on, at the connection that was just made."""
        self._suspicious: int | None = None
        self._timer = parent.timer.call_repeatedly(LOOK_SECONDS, self._look, (parent,))

    def stop(self, parent: Any) -> None:
        """Looks no more; Celery stops also what it never started, where no connection was made."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, consumer: Any) -> None:
        free = consumer.qos.value - len(state.reserved_requests)
        taken = state.all_total_count[0]
        waiting = _waiting(consumer) if free > 0 else 0
        if waiting and self._suspicious == taken:
            _log.error("broker_not_heard", waiting=waiting, free=free)
            raise ConsumerStalled(f"{waiting} messages wait and none was taken for {LOOK_SECONDS:.0f} s")
        self._suspicious = taken if waiting else None


def _waiting(consumer: Any) -> int:
    channel = consumer.task_consumer.channel
    return sum(channel.queue_declare(queue.name).message_count for queue in consumer.task_consumer.queues)
