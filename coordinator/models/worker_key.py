from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base


class WorkerKey(Base):
    """Present or former public key of a worker. It is never deleted, so that old signatures can be verified.

    `id` is `federated.signed_statement.key_id`. The worker's row contains its present key.
    """

    __tablename__ = "worker_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id"), index=True)
    public_key: Mapped[str]
    created_at: Mapped[datetime]
    retired_at: Mapped[datetime | None]
