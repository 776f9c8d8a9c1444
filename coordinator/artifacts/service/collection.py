"""What nobody holds and what expired is deleted."""

from datetime import datetime, timedelta

import structlog

from coordinator.artifacts import repository
from coordinator.artifacts.store import chunks, objects
from coordinator.db.sessions import writing
from coordinator.settings import get_settings

_COLLECTED_AT_ONCE = 100
_log = structlog.get_logger(__name__)


def collect(now: datetime) -> int:
    """Deletes what nobody holds and what expired; returns the bytes freed."""
    settings = get_settings()
    oldest = now - timedelta(seconds=settings.artifact_min_age_seconds)
    _expire_uploads(now - timedelta(seconds=settings.upload_expiry_seconds))
    objects.sweep(oldest)
    _drop_unknown(oldest)
    freed_bytes = 0
    while True:
        with writing() as session:
            taken = repository.take_unheld(session, oldest, _COLLECTED_AT_ONCE)
            # Before the commit: `write_row` of the same digest waits for it, and then sees that the bytes are gone.
            for artifact in taken:
                objects.drop(artifact.digest)
            size_bytes = sum(artifact.size_bytes for artifact in taken)
            repository.count_freed(session, size_bytes)
        freed_bytes += size_bytes
        if len(taken) < _COLLECTED_AT_ONCE:
            _log.info("artifacts_collected", freed_bytes=freed_bytes)
            return freed_bytes


def _expire_uploads(created_before: datetime) -> None:
    with writing() as session:
        expired = repository.expired_uploads(session, created_before, _COLLECTED_AT_ONCE)
        for upload in expired:
            session.delete(upload)
    for upload in expired:
        chunks.drop(upload.id)


def _drop_unknown(written_before: datetime) -> None:
    """Objects that were put and never recorded: their step lost a race, or its process died."""
    for digest in objects.old_digests(written_before):
        with writing() as session:
            if not repository.known(session, [digest]):
                objects.drop(digest)
