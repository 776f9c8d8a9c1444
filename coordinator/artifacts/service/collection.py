"""Garbage collection of artifacts without holds and of expired uploads."""

from datetime import datetime, timedelta

import structlog

from coordinator.artifacts import repository
from coordinator.artifacts.store import chunks, objects
from coordinator.db.sessions import writing
from coordinator.settings import get_settings

_BATCH_SIZE = 100
_log = structlog.get_logger(__name__)


def collect(now: datetime) -> int:
    """Deletes artifacts without holds and expired uploads. Returns the bytes freed."""
    settings = get_settings()
    oldest = now - timedelta(seconds=settings.artifact_min_age_seconds)
    _expire_uploads(now - timedelta(seconds=settings.upload_expiry_seconds))
    objects.sweep(oldest)
    _drop_unknown(oldest)
    freed_bytes = 0
    while True:
        with writing() as session:
            artifacts = repository.delete_unheld(session, oldest, _BATCH_SIZE)
            # Before the commit: `write_row` of the same digest waits for it and then sees that the bytes are gone.
            for artifact in artifacts:
                objects.drop(artifact.digest)
            size_bytes = sum(artifact.size_bytes for artifact in artifacts)
            repository.count_freed(session, size_bytes)
        freed_bytes += size_bytes
        if len(artifacts) < _BATCH_SIZE:
            _log.info("artifacts_collected", freed_bytes=freed_bytes)
            return freed_bytes


def _expire_uploads(created_before: datetime) -> None:
    with writing() as session:
        uploads = repository.expired_uploads(session, created_before, _BATCH_SIZE)
        for upload in uploads:
            session.delete(upload)
    for upload in uploads:
        chunks.drop(upload.id)


def _drop_unknown(written_before: datetime) -> None:
    """Deletes objects that were stored but never recorded, because a step lost a race or its process died."""
    for digest in objects.old_digests(written_before):
        with writing() as session:
            if not repository.existing_digests(session, [digest]):
                objects.drop(digest)
