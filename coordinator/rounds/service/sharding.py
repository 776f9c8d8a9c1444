"""Shards of an aggregation. Each is a row that one task claims, computes and records, and the last task joins them.

The table shows which shards are missing. The result of a shard is discarded if its round has ended meanwhile.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from coordinator.artifacts import service as artifacts
from coordinator.artifacts.service import StoredObject
from coordinator.models import Federation, Round, Shard
from coordinator.models.base import new_id
from coordinator.queue.wakeups import AGGREGATE_SHARD, nudge
from coordinator.rounds import lifecycle, repository
from coordinator.rounds.schemas import ShardInput, ShardLayout, ShardResult
from coordinator.rounds.service import transitions


@dataclass(frozen=True, slots=True)
class ShardClaim:
    """A shard that one task may compute from `inputs`. Its result is recorded under `version`."""

    federation_id: str
    round_id: str
    shard_id: str
    version: int
    inputs: ShardInput


def open_all(session: Session, round_: Round, layout: ShardLayout) -> None:
    """Adds a row and sends a message for each shard."""
    for number, groups in enumerate(layout.shards):
        row = Shard(id=new_id("shd"), round_id=round_.id, number=number, groups=list(groups))
        session.add(row)
        nudge(session, AGGREGATE_SHARD, row.id)


def lock(session: Session, shard_id: str) -> tuple[Federation, Round, Shard] | None:
    """A shard that is still to be computed, its round locked against other writers. None if there is none."""
    row = session.get(Shard, shard_id)
    parent = None if row is None else transitions.lock(session, row.round_id)
    if row is None or parent is None:
        return None
    session.refresh(row)
    federation, round_ = parent
    is_open = round_.state == lifecycle.AGGREGATING and row.made is None
    return (federation, round_, row) if is_open else None


def record(session: Session, round_: Round, row: Shard, result: ShardResult) -> None:
    """Keeps the result of a shard until its round has the whole."""
    for artifact in (result.state, *result.notes.values()):
        artifacts.record(session, artifact, round_.id, transitions.SHARD_PART)
    row.made = asdict(result)
    row.claimed_until = None


def shard_results(session: Session, round_: Round) -> tuple[ShardResult, ...]:
    """The results of a round's shards, in order."""
    return tuple(_result_of(row.made or {}) for row in repository.shards_of(session, round_.id))


def discard(session: Session, round_: Round) -> None:
    """Releases the shards' artifacts."""
    artifacts.release(session, round_.id, transitions.SHARD_PART)


def due(session: Session, now: datetime) -> list[str]:
    """Ids of open shards without a claim."""
    return list(repository.open_shards(session, lifecycle.AGGREGATING, now))


def _result_of(row: Mapping[str, Any]) -> ShardResult:
    notes = {int(ordinal): StoredObject(**fields) for ordinal, fields in row["notes"].items()}
    return ShardResult(StoredObject(**row["state"]), row["metrics"], row["finished"], notes, row["environment"])
