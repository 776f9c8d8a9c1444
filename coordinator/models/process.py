from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base


class Process(Base):
    """A running background or beat process says here that it is alive; readiness names what is stale."""

    __tablename__ = "processes"

    name: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]
    renewed_at: Mapped[datetime]
