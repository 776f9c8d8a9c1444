from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base


class Client(Base):
    """A worker's dataset in a federation: registered, ready, left, out or expelled (with the reason).

    `ordinal` is its position in the order of registration; all sampling, sorting and summing uses it. `memory_…`
    identify the newest memory that the coordinator accepted; the memory itself stays on the worker.
    """

    __tablename__ = "clients"
    __table_args__ = (
        UniqueConstraint("federation_id", "ordinal"),
        UniqueConstraint("federation_id", "worker_id", "dataset"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    federation_id: Mapped[str] = mapped_column(ForeignKey("federations.id", ondelete="CASCADE"))
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id"), index=True)
    name: Mapped[str]
    dataset: Mapped[str]
    ordinal: Mapped[int]
    state: Mapped[str]
    reason: Mapped[str | None]
    reason_detail: Mapped[str | None]
    settings: Mapped[dict[str, Any]]
    evaluates_only: Mapped[bool] = mapped_column(default=False)
    examples: Mapped[int | None]
    evaluation_examples: Mapped[int | None]
    rounds_taken: Mapped[int] = mapped_column(default=0)
    note_digest: Mapped[str | None]
    memory_round: Mapped[int | None]
    memory_digest: Mapped[str | None]
    version: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
