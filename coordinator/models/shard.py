from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base


class Shard(Base):
    """Part of a round's aggregation, computed by the task that claims it.

    `groups` name its tensors. `made` is null until the shard is done: {state, metrics, finished, notes, environment},
    artifacts as {digest, size_bytes}, notes by ordinal. `version`, `claimed_until`, `deaths` and `losses` as in a
    round.
    """

    __tablename__ = "shards"
    __table_args__ = (UniqueConstraint("round_id", "number"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    round_id: Mapped[str] = mapped_column(ForeignKey("rounds.id", ondelete="CASCADE"))
    number: Mapped[int]
    groups: Mapped[list[Any]]
    made: Mapped[dict[str, Any] | None]
    version: Mapped[int] = mapped_column(default=0)
    claimed_until: Mapped[datetime | None]
    deaths: Mapped[int] = mapped_column(default=0)
    losses: Mapped[int] = mapped_column(default=0)
