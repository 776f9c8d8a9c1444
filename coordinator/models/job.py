from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base


class Job(Base):
    """Unit of work of one client: describe, train or evaluate.

    `offered_number` grows with every offer, so that one watcher finds new offers. `submitted_number` is the order in
    which updates arrived. `submission` is a `protocol.SubmitRequest` with an update's signature, and `key_id` names
    its `WorkerKey`. `problem` is a problem document.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_worker_id_state", "worker_id", "state"),
        Index("ix_jobs_round_id_state", "round_id", "state"),
        Index("ix_jobs_state_lease_expires_at", "state", "lease_expires_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    federation_id: Mapped[str] = mapped_column(ForeignKey("federations.id", ondelete="CASCADE"), index=True)
    round_id: Mapped[str | None] = mapped_column(ForeignKey("rounds.id", ondelete="CASCADE"))
    client_id: Mapped[str] = mapped_column(ForeignKey("clients.id", ondelete="CASCADE"), index=True)
    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id"))
    kind: Mapped[str]
    state: Mapped[str]
    attempt: Mapped[int] = mapped_column(default=1)
    seed: Mapped[int] = mapped_column(BigInteger)
    instruction_digest: Mapped[str | None]
    memory_round: Mapped[int | None]
    memory_digest: Mapped[str | None]
    boot_id: Mapped[str | None]
    lease_seconds: Mapped[float]
    lease_expires_at: Mapped[datetime | None]
    progress: Mapped[dict[str, Any] | None]
    submission: Mapped[dict[str, Any] | None]
    update_digest: Mapped[str | None]
    key_id: Mapped[str | None]
    problem: Mapped[dict[str, Any] | None]
    offered_number: Mapped[int] = mapped_column(BigInteger, index=True)
    submitted_number: Mapped[int | None] = mapped_column(BigInteger)
    offered_at: Mapped[datetime]
    leased_at: Mapped[datetime | None]
    submitted_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(default=0)
