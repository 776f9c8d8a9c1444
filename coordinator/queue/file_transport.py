"""Celery message queue in a folder, for an installation on one machine: a kombu transport named `fedloom-files`.

Each message is one file, `queues/<queue>/<time>-<uuid>.json`. It is written under `writing/` and renamed into place,
so no consumer reads a partial file. A consumer takes a message by reading and then unlinking it. Only one of several
consumers can unlink a file, and a consumer that dies leaves nothing to clean up. Messages that do not parse are
dropped with a warning. kombu's own filesystem transport has none of these properties.

A message is lost if its process dies while handling it. The reconciler sends messages for all due work again.
"""

import re
import time
import uuid
from collections import deque
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any, cast

import structlog
from kombu.exceptions import ChannelError
from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.utils.json import dumps, loads

TRANSPORT_NAME = "fedloom-files"
BROKER_URL = f"{TRANSPORT_NAME}://"
POLLING_SECONDS = 0.05
AT_ONCE_SECONDS = 0.2
UNFINISHED_SECONDS = 60.0
"""A file under `writing/` older than this was left by a process that died while writing."""

_QUEUE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")
_log = structlog.get_logger(__name__)


def register() -> None:
    """Registers the transport for `broker_url = "fedloom-files://"`. Importing this module is enough."""
    TRANSPORT_ALIASES[TRANSPORT_NAME] = f"{__name__}:Transport"


def transport_options(folder: Path) -> dict[str, Any]:
    """Celery's `broker_transport_options` for queues in `folder`, which is created on first use."""
    return {"folder": str(folder), "polling_interval": POLLING_SECONDS}


class Channel(virtual.Channel):
    """Channel with direct exchanges only: a fanout table would be a file that several processes write."""

    supports_fanout = False

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._listings: dict[str, deque[Path]] = {}
        options = connection.client.transport_options
        if "folder" not in options:
            raise ValueError("broker_transport_options: 'folder' is missing, see transport_options()")
        self._folder = Path(options["folder"])
        self._writing = self._folder / "writing"
        self._writing.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        oldest = time.time() - UNFINISHED_SECONDS
        for path in self._writing.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()

    def _queue_folder(self, queue: str) -> Path:
        if not _QUEUE_NAME.fullmatch(queue):
            raise ChannelError(f"queue name {queue!r}: only letters, digits and _ . @ - can name a folder")
        return self._folder / "queues" / queue

    def _messages(self, queue: str) -> list[Path]:
        try:
            return sorted(path for path in self._queue_folder(queue).iterdir() if path.suffix == ".json")
        except FileNotFoundError:
            return []

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        self._queue_folder(queue).mkdir(parents=True, exist_ok=True)

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        self._new_queue(queue)
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex}.json"
        partial_file = self._writing / name
        partial_file.write_text(dumps(message), encoding="utf-8")
        partial_file.rename(self._queue_folder(queue) / name)

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        # A listing is used until it is empty: listing for every message would make a long queue quadratic.
        listing = self._listings.get(queue) or deque(self._messages(queue))
        self._listings[queue] = listing
        while listing:
            message = self._take(listing.popleft())
            if message is not None:
                return message
        raise Empty

    def _take(self, path: Path) -> dict[str, Any] | None:
        """Takes the message; None if another consumer has it or if it does not parse."""
        try:
            content = path.read_bytes()
            path.unlink()
        except (FileNotFoundError, IsADirectoryError):
            return None
        try:
            message = cast(dict[str, Any], loads(content))
            self.Message(message, channel=self).headers.get("task")
        except Exception as error:  # whatever foreign bytes raise, the queue continues
            _log.warning("message_dropped", file=path.name, content_bytes=len(content), reason=repr(error))
            return None
        return message

    def _size(self, queue: str) -> int:
        return len(self._messages(queue))

    def _purge(self, queue: str) -> int:
        count = 0
        for path in self._messages(queue):
            with suppress(FileNotFoundError):
                path.unlink()
                count += 1
        return count


class Transport(virtual.Transport):
    """kombu's virtual transport over `Channel`."""

    Channel = Channel
    driver_type = TRANSPORT_NAME
    driver_name = TRANSPORT_NAME
    default_port = 0
    implements = virtual.Transport.implements.extend(exchange_type=frozenset({"direct"}))
    # One for the process, as in kombu's own transports: the connections of a pool share their declarations.
    _process_state = virtual.BrokerState()

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.state = self._process_state

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:  # type: ignore[override]
        """Waits briefly for one message: Celery checks only between two calls whether it has to stop."""
        super().drain_events(connection, None if timeout is None else min(timeout, AT_ONCE_SECONDS))

    def driver_version(self) -> str:
        return "1"


register()
