"""Moves a round on: claims a step, lets the conductor compute it outside any transaction, records the result."""

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.orm import Session

from coordinator.artifacts import service as artifacts
from coordinator.database import reading, utcnow, writing
from coordinator.errors import ArtifactDamaged, CoordinatorError
from coordinator.nudge import ADVANCE_ROUND, AGGREGATE_SHARD, MEND, celery
from coordinator.rounds import conductor, service
from coordinator.rounds.schemas import (
    AgainInput,
    AggregateInput,
    CheckInput,
    JoinInput,
    MadeShard,
    Omission,
    PlanInput,
    Result,
    ShardInput,
    StartInput,
)
from coordinator.rounds.service import Claimed, ClaimedShard
from coordinator.settings import get_settings
from federated.contract import FederationRefused
from federated.failures import type_name

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
    result: Result | str
    with kept(claimed):
        try:
            result = _compute(claimed)
        except (OSError, CoordinatorError) as error:  # disk or store: the claim passes, and it is tried again
            _log.warning("step_held_up", step=_name(claimed), reason=str(error))
            with writing() as session:
                service.hold_up(session, claimed.round_id, error)
            return None
        except Exception as error:
            reference = secrets.token_hex(4)
            _log.exception("step_failed", step=_name(claimed), reference=reference)
            result = f"{_name(claimed)}: {_failure_text(error, reference)}"[:DETAIL_CHARACTERS]
    with writing() as session:
        if not _record(session, claimed, result):
            _log.info("step_discarded", step=_name(claimed))
            return None
        return service.claim(session, claimed.round_id, utcnow())


def _failure_text(error: Exception, reference: str) -> str:
    """What tenants read of a step that failed: a refusal's own words; of anything else only what kind it was."""
    if isinstance(error, FederationRefused):
        return str(error)
    return f"{type_name(error)}; the coordinator's log has the whole of it under {reference}"


@celery.task(name=MEND)
def mend(digest: str) -> None:
    """Makes lost or damaged bytes again of what they were made of; or has whoever needs them do without."""
    whole = _made_again(digest)
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
            _compute_again(given)
            return artifacts.is_whole(digest)
        except ArtifactDamaged as other:
            if not _made_again(other.digest):
                return False


def _compute_again(given: StartInput | PlanInput | AgainInput) -> None:
    match given:
        case StartInput():
            conductor.start(given)
        case PlanInput():
            conductor.plan(given)
        case AgainInput():
            conductor.put_again(given)


def _name(claimed: Claimed | ClaimedShard) -> str:
    return "shard" if isinstance(claimed, ClaimedShard) else type(claimed.step).__name__.lower()


def _compute(claimed: Claimed | ClaimedShard) -> Result:
    match claimed.given:
        case StartInput() as given:
            return conductor.start(given)
        case PlanInput() as given:
            return conductor.plan(given)
        case CheckInput() as given:
            return conductor.check(given)
        case AggregateInput() as given:
            return conductor.aggregate(given)
        case ShardInput() as given:
            return conductor.aggregate_shard(given)
        case JoinInput() as given:
            return conductor.join(given)


def _record(session: Session, claimed: Claimed | ClaimedShard, result: Result | str) -> bool:
    if isinstance(claimed, ClaimedShard):
        assert isinstance(result, MadeShard | Omission | str)  # noqa: S101 - what a shard makes
        return service.record_shard(session, claimed, result, utcnow())
    if isinstance(result, str):
        return service.fail(session, claimed, result, utcnow())
    return service.record(session, claimed, result, utcnow())


def _about(claimed: Claimed | ClaimedShard) -> dict[str, str]:
    return {"federation_id": claimed.federation_id, "round_id": claimed.round_id}


@contextmanager
def kept(claimed: Claimed | ClaimedShard) -> Iterator[None]:
    """Renews the claim in a thread for as long as the block runs."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(get_settings().claim_seconds / 3):
            try:
                with writing() as session:
                    if not service.renew(session, claimed, utcnow()):
                        return
            except Exception as error:  # the next turn may succeed; if none does, the result is thrown away
                _log.warning("claim_not_renewed", reason=repr(error), **_about(claimed))

    thread = threading.Thread(target=renew, name=f"claim-{claimed.round_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
