from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base


class Event(Base):
    """Event of a federation, in order, written in the transaction of the change that it reports."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_federation_id_number", "federation_id", "number"),)

    number: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    federation_id: Mapped[str] = mapped_column(ForeignKey("federations.id", ondelete="CASCADE"))
    at: Mapped[datetime]
    type: Mapped[str]
    data: Mapped[dict[str, Any]]
