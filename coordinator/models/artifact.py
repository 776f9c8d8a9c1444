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
    """Who may read an artifact. `principal` is a worker's or an organisation's id."""

    __tablename__ = "grants"
    __table_args__ = (Index("ix_grants_principal", "principal"),)

    digest: Mapped[str] = mapped_column(ForeignKey("artifacts.digest", ondelete="CASCADE"), primary_key=True)
    principal: Mapped[str] = mapped_column(primary_key=True)
    until: Mapped[datetime | None]


class Hold(Base):
    """Why an artifact is kept: the id of the row that refers to it, and in which part."""

    __tablename__ = "holds"
    __table_args__ = (Index("ix_holds_holder", "holder"),)

    digest: Mapped[str] = mapped_column(ForeignKey("artifacts.digest"), primary_key=True)
    holder: Mapped[str] = mapped_column(primary_key=True)
    part: Mapped[str] = mapped_column(primary_key=True)
