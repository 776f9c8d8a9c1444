"""Moves a round on: claims a step, lets the conductor compute it outside any transaction, records the result."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.orm import Session

from coordinator.database import utcnow, writing
from coordinator.errors import CoordinatorError
from coordinator.nudge import ADVANCE_ROUND, celery
from coordinator.rounds import conductor, service
from coordinator.rounds.schemas import AggregateInput, CheckInput, PlanInput, Result, StartInput
from coordinator.rounds.service import Claimed
from coordinator.settings import get_settings

DETAIL_CHARACTERS = 2000
_log = structlog.get_logger(__name__)


@celery.task(name=ADVANCE_ROUND)
def advance(round_id: str) -> None:
    """Does what is due in the round until it waits or ends. Doubled, concurrent and lost calls do no harm."""
    with writing() as session:
        claimed = service.claim(session, round_id, utcnow())
    while claimed is not None:
        claimed = do(claimed)


def do(claimed: Claimed) -> Claimed | None:
    """Computes and records a claimed step, and claims the next one in the same transaction."""
    result: Result | str
    with kept(claimed):
        try:
            result = _compute(claimed)
        except (OSError, CoordinatorError):  # disk or store: the claim passes, and the reconciler tries again
            raise
        except Exception as error:
            _log.exception("step_failed", round_id=claimed.round_id, step=type(claimed.step).__name__)
            result = f"{type(claimed.step).__name__.lower()}: {error}"[:DETAIL_CHARACTERS]
    with writing() as session:
        if not _record(session, claimed, result):
            _log.info("step_discarded", round_id=claimed.round_id, step=type(claimed.step).__name__)
            return None
        return service.claim(session, claimed.round_id, utcnow())


def _compute(claimed: Claimed) -> Result:
    match claimed.given:
        case StartInput() as given:
            return conductor.start(given)
        case PlanInput() as given:
            return conductor.plan(given)
        case CheckInput() as given:
            return conductor.check(given)
        case AggregateInput() as given:
            return conductor.aggregate(given)


def _record(session: Session, claimed: Claimed, result: Result | str) -> bool:
    if isinstance(result, str):
        return service.fail(session, claimed, result, utcnow())
    return service.record(session, claimed, result, utcnow())


@contextmanager
def kept(claimed: Claimed) -> Iterator[None]:
    """Renews the claim in a thread for as long as the block runs."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(get_settings().claim_seconds / 3):
            try:
                with writing() as session:
                    if not service.renew(session, claimed, utcnow()):
                        return
            except Exception as error:  # the next turn may succeed; if none does, the result is thrown away
                _log.warning("claim_not_renewed", round_id=claimed.round_id, reason=repr(error))

    thread = threading.Thread(target=renew, name=f"claim-{claimed.round_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
