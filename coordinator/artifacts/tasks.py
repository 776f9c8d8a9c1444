"""Background tasks of artifacts. Each may be lost, duplicated or run twice at once."""

from coordinator.artifacts import service
from coordinator.db.sessions import utcnow
from coordinator.queue import wakeups
from coordinator.web import idempotency


@wakeups.celery.task(name=wakeups.ASSEMBLE)
def assemble(upload_id: str) -> None:
    service.assemble(upload_id)


@wakeups.celery.task(name=wakeups.RESUME_UPLOADS)
def resume() -> None:
    service.resume(utcnow())


@wakeups.celery.task(name=wakeups.COLLECT)
def collect() -> None:
    service.collect(utcnow())
    idempotency.delete_expired(utcnow())
