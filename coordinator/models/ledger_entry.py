from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base


class LedgerEntry(Base):
    """Contribution of an organization to a deleted federation. For existing ones it is computed from their rows.

    The federation's id refers to no row. Counts are of train jobs, bytes of all jobs.
    """

    __tablename__ = "ledger_entries"

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    federation_id: Mapped[str] = mapped_column(primary_key=True)
    federation_name: Mapped[str]
    rounds: Mapped[int]
    examples: Mapped[int] = mapped_column(BigInteger)
    download_bytes: Mapped[int] = mapped_column(BigInteger)
    upload_bytes: Mapped[int] = mapped_column(BigInteger)
    training_seconds: Mapped[float]
    updates_accepted: Mapped[int]
    updates_rejected: Mapped[int]
    updates_failed: Mapped[int]
    updates_declined: Mapped[int]
    updates_expired: Mapped[int]
    deleted_at: Mapped[datetime]
