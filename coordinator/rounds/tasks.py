"""Tasks that advance a round: they claim a step, have it computed outside of a transaction, and record the result."""

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
from coordinator.rounds import service, step_pool, steps
from coordinator.rounds.schemas import Failure, Omission, Result, ShardResult
from coordinator.rounds.service import ALGORITHM_FAILED, Claim, ShardClaim
from coordinator.rounds.step_messages import StepError
from coordinator.settings import get_settings
from federated.contract import FederationRefused

DETAIL_CHARACTERS = 2000
_log = structlog.get_logger(__name__)


@celery.task(name=ADVANCE_ROUND)
def advance(round_id: str) -> None:
    """Does the due steps of the round until it waits or ends. Doubled, concurrent and lost calls do no harm."""
    with writing() as session:
        claim = steps.claim(session, round_id, utcnow())
    while claim is not None:
        claim = do(claim)


@celery.task(name=AGGREGATE_SHARD)
def aggregate_shard(shard_id: str) -> None:
    """Does a part of a round's aggregation. The task that does the last part goes on with the round."""
    with writing() as session:
        part = service.claim_shard(session, shard_id, utcnow())
    claim = None if part is None else do(part)
    while claim is not None:
        claim = do(claim)


def do(claim: Claim | ShardClaim) -> Claim | None:
    """Computes and records a claimed step, and claims the next one in the same transaction."""
    with structlog.contextvars.bound_contextvars(**_about(claim)):
        return _do(claim)


def _do(claim: Claim | ShardClaim) -> Claim | None:
    result: Result | Failure
    try:
        with renewal(claim) as loss:
            result = step_pool.compute(claim.inputs, loss.is_set)
    except (OSError, CoordinatorError) as error:  # disk or store: the claim expires, and the step is retried
        _log.warning("step_held_up", step=_name(claim), reason=str(error))
        with writing() as session:
            service.hold_up(session, claim.round_id, error)
        return None
    except step_pool.StepCanceled:
        _log.info("step_discarded", step=_name(claim))
        return None
    except step_pool.StepProcessExit as death:
        _log.error("step_died", step=_name(claim), how=str(death))
        return _begin_again(claim)
    except (step_pool.StepOverran, StepError, FederationRefused) as error:
        result = _failure(claim, error)
    with writing() as session:
        if not _record(session, claim, result):
            _log.info("step_discarded", step=_name(claim))
            return None
        return steps.claim(session, claim.round_id, utcnow())


def _begin_again(claim: Claim | ShardClaim) -> Claim | None:
    """Repeats a step whose process died. A second death fails the round."""
    with writing() as session:
        service.count_death(session, claim, utcnow())
    if isinstance(claim, ShardClaim):
        aggregate_shard(claim.shard_id)
        return None
    with writing() as session:
        return steps.claim(session, claim.round_id, utcnow())


def _failure(claim: Claim | ShardClaim, error: Exception) -> Failure:
    """The failure as tenants read it: the text of a refusal, but only the type of any other error."""
    match error:
        case step_pool.StepOverran():
            seconds = get_settings().step_seconds
            _log.error("step_overran", step=_name(claim), step_seconds=seconds)
            return Failure("step_overran", f"{_name(claim)}: it was not done within {seconds:g} s (step_seconds)")
        case StepError():
            reference = secrets.token_hex(4)
            _log.error("step_failed", step=_name(claim), reference=reference, exception=error.trace)
            text = f"{error.name}; the coordinator's log has the whole of it under {reference}"
        case _:
            text = str(error)
    return Failure(ALGORITHM_FAILED, f"{_name(claim)}: {text}"[:DETAIL_CHARACTERS])


@celery.task(name=MEND)
def repair(digest: str) -> None:
    """Restores lost or damaged bytes from their inputs, or gives them up."""
    try:
        whole = _restore(digest)
    except (step_pool.StepProcessExit, step_pool.StepOverran) as error:  # the next use of the bytes tries again
        _log.error("artifact_not_mended", digest=digest, reason=repr(error))
        return
    with writing() as session:
        if whole:
            service.resume(session, digest)
        else:
            service.give_up(session, digest, utcnow())
    _log.warning("artifact_mended" if whole else "artifact_lost", digest=digest)


def _restore(digest: str) -> bool:
    if artifacts.is_whole(digest):
        return True
    with reading() as session:
        inputs = service.restoration_of(session, digest)
    if inputs is None:
        return False
    artifacts.discard(digest)
    while True:
        try:
            step_pool.compute(inputs)
            return artifacts.is_whole(digest)
        except ArtifactDamaged as other:
            if not _restore(other.digest):
                return False


def _name(claim: Claim | ShardClaim) -> str:
    return "shard" if isinstance(claim, ShardClaim) else type(claim.step).__name__.lower()


def _record(session: Session, claim: Claim | ShardClaim, result: Result | Failure) -> bool:
    if isinstance(claim, ShardClaim):
        assert isinstance(result, ShardResult | Omission | Failure)  # noqa: S101 - the results of a shard
        return service.record_shard(session, claim, result, utcnow())
    if isinstance(result, Failure):
        return service.fail(session, claim, result, utcnow())
    return steps.record(session, claim, result, utcnow())


def _about(claim: Claim | ShardClaim) -> dict[str, str]:
    return {"federation_id": claim.federation_id, "round_id": claim.round_id}


@contextmanager
def renewal(claim: Claim | ShardClaim) -> Iterator[threading.Event]:
    """Renews the claim in a thread as long as the block runs. The event is set if the claim is lost."""
    stopping, loss = threading.Event(), threading.Event()

    def renew() -> None:
        while not stopping.wait(get_settings().claim_seconds / 3):
            try:
                with writing() as session:
                    if not service.renew(session, claim, utcnow()):
                        loss.set()
                        return
            except Exception as error:  # the next turn may succeed; if none does, the result is discarded
                _log.warning("claim_not_renewed", reason=repr(error), **_about(claim))

    thread = threading.Thread(target=renew, name=f"claim-{claim.round_id}", daemon=True)
    thread.start()
    try:
        yield loss
    finally:
        stopping.set()
        thread.join()
