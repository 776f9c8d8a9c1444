"""Claims on the next step of a round, each for one task and with the inputs that the conductor needs.

A claim raises the round's `version`. A task that computed for an older version finds that out when it records, and
its result is discarded. `claimed_until` keeps a second task from computing the same step at once. It is renewed while
the owner works, and it expires when the owner has died.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import update
from sqlalchemy.orm import Session

from coordinator.models import Round, Shard
from coordinator.rounds import lifecycle
from coordinator.rounds.lifecycle import Aggregate, ConductorStep, Wait
from coordinator.rounds.schemas import Input, ShardInput
from coordinator.rounds.service import inputs, sharding, snapshots, transitions
from coordinator.rounds.service.inputs import StepContext
from coordinator.rounds.service.sharding import ShardClaim
from coordinator.settings import get_settings

Loader = Callable[[StepContext, ConductorStep], Input]


@dataclass(frozen=True, slots=True)
class Claim:
    """A step that one task may compute from `inputs`. Its result is recorded under `version`."""

    federation_id: str
    round_id: str
    version: int
    step: ConductorStep
    inputs: Input


def claim(session: Session, round_id: str, load: Loader, now: datetime) -> Claim | None:
    """Applies all steps that need no tensors, then claims the one that does. None: nothing to do, or not now."""
    rows = transitions.lock(session, round_id)
    while rows is not None:
        federation, round_ = rows
        if round_.state in lifecycle.TERMINAL or (round_.claimed_until is not None and round_.claimed_until > now):
            return None
        (snapshot,) = snapshots.snapshots(session, [round_], now)
        step = lifecycle.next_step(snapshot, snapshots.rules(federation), now)
        if isinstance(step, Wait):
            return None
        if isinstance(step, ConductorStep):
            if transitions.fail_if_given_up(session, round_, round_, now):
                return None
            return _claim_step(StepContext(session, federation, round_, now), step, load)
        rows = federation, transitions.apply(session, federation, round_, snapshot, step, now)
    return None


def claim_shard(session: Session, shard_id: str, now: datetime) -> ShardClaim | None:
    """Claims a part of an aggregation. None: nothing to do, or another task computes it."""
    rows = sharding.lock(session, shard_id)
    if rows is None:
        return None
    federation, round_, row = rows
    if row.claimed_until is not None and row.claimed_until > now:
        return None
    if transitions.fail_if_given_up(session, round_, row, now):
        return None
    row.version += 1
    row.claimed_until = _until(now)
    whole = inputs.current_aggregate_input(session, federation, round_)
    return ShardClaim(federation.id, round_.id, row.id, row.version, ShardInput(whole, tuple(row.groups)))


def renew(session: Session, claim: Claim | ShardClaim, now: datetime) -> bool:
    """Keeps the claim for another `claim_seconds`. False if it was lost."""
    if isinstance(claim, ShardClaim):
        shard = update(Shard).where(Shard.id == claim.shard_id, Shard.version == claim.version)
        ids = session.execute(shard.values(claimed_until=_until(now)).returning(Shard.id))
    else:
        round_ = update(Round).where(Round.id == claim.round_id, Round.version == claim.version)
        ids = session.execute(round_.values(claimed_until=_until(now)).returning(Round.id))
    return ids.one_or_none() is not None


def _until(now: datetime) -> datetime:
    return now + timedelta(seconds=get_settings().claim_seconds)


def _claim_step(context: StepContext, step: ConductorStep, load: Loader) -> Claim:
    round_ = context.round_
    if isinstance(step, Aggregate):
        transitions.stop_collecting(context.session, round_, step, context.now)
    round_.version += 1
    round_.claimed_until = _until(context.now)
    return Claim(context.federation.id, round_.id, round_.version, step, load(context, step))
