from sqlalchemy import BigInteger
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base

ARTIFACT_BYTES_FREED = "artifact_bytes_freed"


class Counter(Base):
    """Total of the installation that its other rows cannot provide. The migration inserts the rows."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)
