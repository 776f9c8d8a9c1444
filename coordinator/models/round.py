from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base


class Round(Base):
    """One attempt at a round: (kind, number, attempt). A new attempt keeps the updates that an earlier one accepted.

    `sequence` numbers the federation's rows in the order in which they were opened.
    `cohort` lists the ordinals sampled for this attempt; `everybody` says that the state requires all live clients.
    `start_digest` is the state the round starts from, `state_digest` the one it produced. `adapter` is {kind, files},
    files by name as {digest, size_bytes}. `notes` are the digests of the notes used in the aggregation, by ordinal;
    their replacements belong to the next round. `version` counts changes. `claimed_until` keeps two tasks from
    running one step. `deaths` counts the processes that died during the present step, `losses` its expired claims.
    """

    __tablename__ = "rounds"
    __table_args__ = (
        UniqueConstraint("federation_id", "kind", "number", "attempt"),
        UniqueConstraint("federation_id", "sequence"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    federation_id: Mapped[str] = mapped_column(ForeignKey("federations.id", ondelete="CASCADE"))
    kind: Mapped[str]
    number: Mapped[int]
    attempt: Mapped[int]
    sequence: Mapped[int]
    state: Mapped[str] = mapped_column(index=True)
    reason: Mapped[str | None]
    reason_detail: Mapped[str | None]
    everybody: Mapped[bool] = mapped_column(default=False)
    cohort: Mapped[list[Any] | None]
    planned: Mapped[bool] = mapped_column(default=False)
    evaluation_planned: Mapped[bool] = mapped_column(default=False)
    registered: Mapped[int | None]
    start_digest: Mapped[str | None]
    state_digest: Mapped[str | None]
    adapter: Mapped[dict[str, Any] | None]
    metrics: Mapped[dict[str, Any]]
    seconds: Mapped[dict[str, Any]]
    not_reproducible: Mapped[list[Any]]
    notes: Mapped[dict[str, Any] | None]
    environment: Mapped[dict[str, Any] | None]
    finished: Mapped[str | None]
    signature: Mapped[str | None]
    late_updates: Mapped[int] = mapped_column(default=0)
    deadline_at: Mapped[datetime | None]
    evaluation_deadline_at: Mapped[datetime | None]
    opened_at: Mapped[datetime]
    collecting_at: Mapped[datetime | None]
    aggregated_at: Mapped[datetime | None]
    closed_at: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(default=0)
    claimed_until: Mapped[datetime | None]
    deaths: Mapped[int] = mapped_column(default=0)
    losses: Mapped[int] = mapped_column(default=0)
