"""Moves a round on: claims a step, lets the conductor compute it outside any transaction, records the result."""

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.orm import Session

from coordinator.artifacts import service as artifacts
from coordinator.db.sessions import reading, utcnow, writing
from coordinator.errors import ArtifactDamaged, CoordinatorError
from coordinator.queue.wakeups import ADVANCE_ROUND, AGGREGATE_SHARD, MEND, celery
from coordinator.rounds import service, step_pool
from coordinator.rounds.schemas import Failure, MadeShard, Omission, Result
from coordinator.rounds.service import ALGORITHM_FAILED, Claimed, ClaimedShard
from coordinator.rounds.step_messages import StepBroke
from coordinator.settings import get_settings
from federated.contract import FederationRefused

DETAIL_CHARACTERS = 2000
_log = structlog.get_logger(__name__)


@celery.task(name=ADVANCE_ROUND)
def advance(round_id: str) -> None:
    """Does what is due in the round until it waits or ends. Doubled, concurrent and lost calls do no harm."""
    with writing() as session:
        claimed = service.claim(session, round_id, utcnow())
    while claimed is not None:
        claimed = do(claimed)


@celery.task(name=AGGREGATE_SHARD)
def aggregate_shard(shard_id: str) -> None:
    """Does a part of a round's aggregation; whoever does the last one goes on with the round."""
    with writing() as session:
        part = service.claim_shard(session, shard_id, utcnow())
    claimed = None if part is None else do(part)
    while claimed is not None:
        claimed = do(claimed)


def do(claimed: Claimed | ClaimedShard) -> Claimed | None:
    """Computes and records a claimed step, and claims the next one in the same transaction."""
    with structlog.contextvars.bound_contextvars(**_about(claimed)):
        return _do(claimed)


def _do(claimed: Claimed | ClaimedShard) -> Claimed | None:
    result: Result | Failure
    try:
        with kept(claimed) as lost:
            result = step_pool.compute(claimed.given, lost.is_set)
    except (OSError, CoordinatorError) as error:  # disk or store: the claim passes, and it is tried again
        _log.warning("step_held_up", step=_name(claimed), reason=str(error))
        with writing() as session:
            service.hold_up(session, claimed.round_id, error)
        return None
    except step_pool.StepUnwanted:
        _log.info("step_discarded", step=_name(claimed))
        return None
    except step_pool.StepDied as death:
        _log.error("step_died", step=_name(claimed), how=str(death))
        return _begin_again(claimed)
    except (step_pool.StepOverran, StepBroke, FederationRefused) as error:
        result = _failure(claimed, error)
    with writing() as session:
        if not _record(session, claimed, result):
            _log.info("step_discarded", step=_name(claimed))
            return None
        return service.claim(session, claimed.round_id, utcnow())


def _begin_again(claimed: Claimed | ClaimedShard) -> Claimed | None:
    """A step whose process died is done once more; a second death fails the round."""
    with writing() as session:
        service.count_death(session, claimed, utcnow())
    if isinstance(claimed, ClaimedShard):
        aggregate_shard(claimed.shard_id)
        return None
    with writing() as session:
        return service.claim(session, claimed.round_id, utcnow())


def _failure(claimed: Claimed | ClaimedShard, error: Exception) -> Failure:
    """What tenants read of a step that failed: a refusal's own words; of an error only what kind it was."""
    match error:
        case step_pool.StepOverran():
            seconds = get_settings().step_seconds
            _log.error("step_overran", step=_name(claimed), step_seconds=seconds)
            return Failure("step_overran", f"{_name(claimed)}: it was not done within {seconds:g} s (step_seconds)")
        case StepBroke():
            reference = secrets.token_hex(4)
            _log.error("step_failed", step=_name(claimed), reference=reference, exception=error.trace)
            words = f"{error.name}; the coordinator's log has the whole of it under {reference}"
        case _:
            words = str(error)
    return Failure(ALGORITHM_FAILED, f"{_name(claimed)}: {words}"[:DETAIL_CHARACTERS])


@celery.task(name=MEND)
def mend(digest: str) -> None:
    """Makes lost or damaged bytes again of what they were made of; or has whoever needs them do without."""
    try:
        whole = _made_again(digest)
    except (step_pool.StepDied, step_pool.StepOverran) as error:  # whoever needs the bytes asks again
        _log.error("artifact_not_mended", digest=digest, reason=repr(error))
        return
    with writing() as session:
        if whole:
            service.mended(session, digest)
        else:
            service.lost(session, digest, utcnow())
    _log.warning("artifact_mended" if whole else "artifact_lost", digest=digest)


def _made_again(digest: str) -> bool:
    if artifacts.is_whole(digest):
        return True
    with reading() as session:
        given = service.making(session, digest)
    if given is None:
        return False
    artifacts.discard(digest)
    while True:
        try:
            step_pool.compute(given)
            return artifacts.is_whole(digest)
        except ArtifactDamaged as other:
            if not _made_again(other.digest):
                return False


def _name(claimed: Claimed | ClaimedShard) -> str:
    return "shard" if isinstance(claimed, ClaimedShard) else type(claimed.step).__name__.lower()


def _record(session: Session, claimed: Claimed | ClaimedShard, result: Result | Failure) -> bool:
    if isinstance(claimed, ClaimedShard):
        assert isinstance(result, MadeShard | Omission | Failure)  # noqa: S101 - what a shard makes
        return service.record_shard(session, claimed, result, utcnow())
    if isinstance(result, Failure):
        return service.fail(session, claimed, result, utcnow())
    return service.record(session, claimed, result, utcnow())


def _about(claimed: Claimed | ClaimedShard) -> dict[str, str]:
    return {"federation_id": claimed.federation_id, "round_id": claimed.round_id}


@contextmanager
def kept(claimed: Claimed | ClaimedShard) -> Iterator[threading.Event]:
    """Renews the claim in a thread for as long as the block runs; the event says that it was lost."""
    done, lost = threading.Event(), threading.Event()

    def renew() -> None:
        while not done.wait(get_settings().claim_seconds / 3):
            try:
                with writing() as session:
                    if not service.renew(session, claimed, utcnow()):
                        lost.set()
                        return
            except Exception as error:  # the next turn may succeed; if none does, the result is thrown away
                _log.warning("claim_not_renewed", reason=repr(error), **_about(claimed))

    thread = threading.Thread(target=renew, name=f"claim-{claimed.round_id}", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        done.set()
        thread.join()
