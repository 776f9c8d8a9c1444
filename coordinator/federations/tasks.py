"""Background tasks of federations. Each may be lost, duplicated or run twice at once."""

from coordinator.db.sessions import reading, utcnow, writing
from coordinator.errors import ArtifactDamaged
from coordinator.federations import service
from coordinator.queue.wakeups import (
    ADVANCE_FEDERATION,
    ADVANCE_ROUND,
    AGGREGATE_SHARD,
    DELIVER,
    RECONCILE,
    celery,
    send,
)
from coordinator.rounds import service as round_service
from coordinator.rounds import tasks as rounds
from coordinator.webhooks import service as webhooks


@celery.task(name=ADVANCE_FEDERATION)
def advance(federation_id: str) -> None:
    """Performs what is due in the federation, then advances its open round without another message."""
    try:
        with writing() as session:
            round_id = service.advance(session, federation_id, utcnow())
    except ArtifactDamaged as damage:
        with writing() as session:
            service.repair_or_fail(session, federation_id, damage, utcnow())
        return
    if round_id is not None:
        rounds.advance(round_id)


@celery.task(name=RECONCILE)
def reconcile() -> None:
    """Expires lost leases, and enqueues everything that is due according to the database."""
    now = utcnow()
    with writing() as session:
        service.expire(session, now)
    with reading() as session:
        federations, rounds_due = service.overdue(session, now)
        shards_due = round_service.shards_due(session, now)
        webhooks_due = webhooks.due(session, now)
    for federation_id in federations:
        send(ADVANCE_FEDERATION, federation_id)
    for round_id in rounds_due:
        send(ADVANCE_ROUND, round_id)
    for shard_id in shards_due:
        send(AGGREGATE_SHARD, shard_id)
    for webhook in webhooks_due:
        send(DELIVER, *webhook)
