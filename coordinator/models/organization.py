from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base


class Organization(Base):
    """Organization that participates in federations, owns some, or both."""

    __tablename__ = "organizations"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime]
