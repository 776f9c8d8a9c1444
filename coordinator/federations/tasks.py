"""Moves federations on, and finds what was forgotten. Each may be lost, doubled or run twice at once."""

from coordinator.database import reading, utcnow, writing
from coordinator.federations import service
from coordinator.nudge import ADVANCE_FEDERATION, ADVANCE_ROUND, RECONCILE, celery, send
from coordinator.rounds import tasks as rounds


@celery.task(name=ADVANCE_FEDERATION)
def advance(federation_id: str) -> None:
    """Does what is due in the federation, and goes on with its open round without another message."""
    with writing() as session:
        round_id = service.advance(session, federation_id, utcnow())
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
    for federation_id in federations:
        send(ADVANCE_FEDERATION, federation_id)
    for round_id in rounds_due:
        send(ADVANCE_ROUND, round_id)
