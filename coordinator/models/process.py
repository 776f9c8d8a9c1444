from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base


class Process(Base):
    """Heartbeat of a running background or beat process; readiness reports stale roles."""

    __tablename__ = "processes"

    name: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]
    renewed_at: Mapped[datetime]
