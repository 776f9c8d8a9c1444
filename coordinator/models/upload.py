from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base


class Upload(Base):
    """Announced upload. Its chunks are objects in the store, and only the store knows which of them exist."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(primary_key=True)
    principal: Mapped[str] = mapped_column(index=True)
    digest: Mapped[str] = mapped_column(index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    chunk_bytes: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str]
    problem: Mapped[dict[str, Any] | None]
    version: Mapped[int] = mapped_column(default=0)
    claimed_until: Mapped[datetime | None]
    created_at: Mapped[datetime]
