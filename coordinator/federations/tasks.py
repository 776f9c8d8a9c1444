"""Moves federations on, and finds what was forgotten. Each may be lost, doubled or run twice at once."""

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
    """Does what is due in the federation, and goes on with its open round without another message."""
    try:
        with writing() as session:
            round_id = service.advance(session, federation_id, utcnow())
    except ArtifactDamaged as damage:
        with writing() as session:
            service.hold_up(session, federation_id, damage, utcnow())
        return
    if round_id is not None:
        rounds.advance(round_id)


@celery.task(name=RECONCILE)
def reconcile() -> None:
    """Takes lost leases back, and wakes whatever the tables say is due."""
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
