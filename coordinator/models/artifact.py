from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base


class Artifact(Base):
    """Stored bytes, addressed by content: `digest` is "sha256:" + hex."""

    __tablename__ = "artifacts"

    digest: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(index=True)


class Grant(Base):
    """Read access to an artifact. `principal` is the id of a worker or an organization."""

    __tablename__ = "grants"
    __table_args__ = (Index("ix_grants_principal", "principal"),)

    digest: Mapped[str] = mapped_column(ForeignKey("artifacts.digest", ondelete="CASCADE"), primary_key=True)
    principal: Mapped[str] = mapped_column(primary_key=True)
    until: Mapped[datetime | None]


class Hold(Base):
    """Reference that keeps an artifact: the id of the row that refers to it, and the part of that row."""

    __tablename__ = "holds"
    __table_args__ = (Index("ix_holds_holder", "holder"),)

    digest: Mapped[str] = mapped_column(ForeignKey("artifacts.digest"), primary_key=True)
    holder: Mapped[str] = mapped_column(primary_key=True)
    part: Mapped[str] = mapped_column(primary_key=True)
