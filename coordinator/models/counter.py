from sqlalchemy import BigInteger
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base

ARTIFACT_BYTES_FREED = "artifact_bytes_freed"


class Counter(Base):
    """What the installation has done so far and no row tells any more. The rows are there from the migration on."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)
