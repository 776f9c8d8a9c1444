"""Background work on artifacts. Each may be lost, doubled or run twice at once."""

from coordinator import idempotency, nudge
from coordinator.artifacts import service
from coordinator.database import utcnow


@nudge.celery.task(name=nudge.ASSEMBLE)
def assemble(upload_id: str) -> None:
    service.assemble(upload_id)


@nudge.celery.task(name=nudge.RESUME_UPLOADS)
def resume() -> None:
    service.resume(utcnow())


@nudge.celery.task(name=nudge.COLLECT)
def collect() -> None:
    service.collect(utcnow())
    idempotency.forget_expired(utcnow())
