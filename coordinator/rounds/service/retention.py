"""Retention of states and updates. Adapters are kept for ever."""

from sqlalchemy.orm import Session

from coordinator.artifacts import service as artifacts
from coordinator.models import Federation, Round
from coordinator.rounds import repository
from coordinator.rounds.service import snapshots

LANDMARK_ROUNDS = 10
"""The state of every tenth train round is kept."""


def release_old(session: Session, federation: Federation) -> None:
    """Releases the states and updates that the closing of a round moved beyond the definition's retention."""
    retention = federation.definition["retention"]
    old = repository.closed_before(session, federation.id, retention["keep_updates_rounds"])
    if old is not None:
        _release_updates(session, old)
    old = repository.closed_before(session, federation.id, retention["keep_states_rounds"])
    if old is not None and (old.kind != "train" or old.number % LANDMARK_ROUNDS):
        for row in repository.attempts(session, federation.id, old.kind, old.number):
            artifacts.release(session, row.id, "start")
            artifacts.release(session, row.id, "state")


def _release_updates(session: Session, old: Round) -> None:
    rows = repository.attempts(session, old.federation_id, old.kind, old.number)
    for job in snapshots.train_jobs(session, rows):
        artifacts.release(session, job.id)
    for row in rows:
        artifacts.release(session, row.id, "instruction")
        artifacts.release(session, row.id, "evaluation")
        artifacts.release(session, row.id, "note")
