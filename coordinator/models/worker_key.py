from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base


class WorkerKey(Base):
    """A public key that a worker signs or signed with: kept for ever, so that old signatures can be checked.

    `id` is `federated.signed_statement.key_id`. The worker's row has the one that counts now.
    """

    __tablename__ = "worker_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id"), index=True)
    public_key: Mapped[str]
    created_at: Mapped[datetime]
    retired_at: Mapped[datetime | None]
