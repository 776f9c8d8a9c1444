from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base


class Worker(Base):
    """Enrolled worker agent. `boot_id` names its present run; `capabilities` is a `protocol.Capabilities`.

    `replaced_boots`: its earlier runs, newest last, as maintained by `workers.lifecycle`. `doubled_at`: time at which
    one of them called again with the present key, which two agents then hold.
    """

    __tablename__ = "workers"
    __table_args__ = (UniqueConstraint("organization_id", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    name: Mapped[str]
    public_key: Mapped[str] = mapped_column(unique=True)
    capabilities: Mapped[dict[str, Any]]
    boot_id: Mapped[str | None]
    replaced_boots: Mapped[list[Any] | None]
    doubled_at: Mapped[datetime | None]
    last_seen_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None] = mapped_column(index=True)
