"""The messages in the coordinator's queue, whichever broker carries them."""

from base64 import b64decode
from typing import Any

from kombu.utils.json import loads
from redis import Redis

from coordinator.queue.wakeups import celery
from coordinator.settings import get_settings

Message = tuple[str, list[Any]]
_LIST = "celery"


def queued(task_name: str) -> list[list[Any]]:
    """Arguments of the messages that wait for this task, in order of sending; takes none away."""
    return [arguments for name, arguments in map(_read, _waiting()) if name == task_name]


def take() -> Message | None:
    """Task and arguments of the oldest message, which is gone then; None without any."""
    if get_settings().embedded:
        for path in _files():
            message = path.read_bytes()
            path.unlink()
            return _read(message)
        return None
    with _redis() as redis:
        popped = redis.rpop(_LIST)
    return None if popped is None else _read(popped)


def run_all() -> int:
    """Runs the tasks of the messages, and of those that they send, until there are none; returns how many ran."""
    ran = 0
    while (message := take()) is not None:
        name, arguments = message
        celery.tasks[name](*arguments)
        ran += 1
    return ran


def _waiting() -> list[bytes]:
    if get_settings().embedded:
        return [path.read_bytes() for path in _files()]
    with _redis() as redis:
        return list(reversed(redis.lrange(_LIST, 0, -1)))


def _files() -> list[Any]:
    return sorted(get_settings().queue_folder.glob("queues/*/*.json"))


def _redis() -> "Redis[bytes]":
    return Redis.from_url(get_settings().broker)


def _read(content: bytes) -> Message:
    message = loads(content)
    return message["headers"]["task"], loads(b64decode(message["body"]))[0]
