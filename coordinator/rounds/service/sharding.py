"""Shards of an aggregation: each is a row that one task claims, computes and records; the last one done joins them.

Which are missing stands in the table. A shard is computed for as long as its round aggregates; whatever is made for
a round that ended meanwhile is thrown away.
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
from coordinator.rounds.schemas import Cut, MadeShard, ShardInput
from coordinator.rounds.service import transitions


@dataclass(frozen=True, slots=True)
class ClaimedShard:
    """A shard that one task may compute: `given` to the conductor, recorded under `version`."""

    federation_id: str
    round_id: str
    shard_id: str
    version: int
    given: ShardInput


def open_all(session: Session, round_: Round, made: Cut) -> None:
    """A row and a message for each shard."""
    for number, groups in enumerate(made.shards):
        row = Shard(id=new_id("shd"), round_id=round_.id, number=number, groups=list(groups))
        session.add(row)
        nudge(session, AGGREGATE_SHARD, row.id)


def locked(session: Session, shard_id: str) -> tuple[Federation, Round, Shard] | None:
    """A shard that is still to be done, its round locked against other writers; None if there is none."""
    row = session.get(Shard, shard_id)
    found = None if row is None else transitions.locked(session, row.round_id)
    if row is None or found is None:
        return None
    session.refresh(row)
    federation, round_ = found
    wanted = round_.state == lifecycle.AGGREGATING and row.made is None
    return (federation, round_, row) if wanted else None


def record(session: Session, round_: Round, row: Shard, made: MadeShard) -> None:
    """Keeps what a shard made until its round has the whole."""
    for stored in (made.state, *made.notes.values()):
        artifacts.record(session, stored, round_.id, transitions.SHARD_PART)
    row.made = asdict(made)
    row.claimed_until = None


def made_parts(session: Session, round_: Round) -> tuple[MadeShard, ...]:
    """What the shards of a round made, in order."""
    return tuple(_made(row.made or {}) for row in repository.shards_of(session, round_.id))


def discard(session: Session, round_: Round) -> None:
    """The shards' artifacts are kept no longer."""
    artifacts.release(session, round_.id, transitions.SHARD_PART)


def due(session: Session, now: datetime) -> list[str]:
    """Ids of shards that nobody works on."""
    return list(repository.open_shards(session, lifecycle.AGGREGATING, now))


def _made(row: Mapping[str, Any]) -> MadeShard:
    notes = {int(ordinal): StoredObject(**stored) for ordinal, stored in row["notes"].items()}
    return MadeShard(StoredObject(**row["state"]), row["metrics"], row["finished"], notes, row["environment"])
