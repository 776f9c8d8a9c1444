from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base


class Webhook(Base):
    """Endpoint to which an organization's events are sent. `secret` signs deliveries, so it is stored in plain text.

    `claimed_until` keeps two tasks from sending to it at once. After a failed connection nothing is sent until
    `paused_until`.
    """

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    url: Mapped[str]
    events: Mapped[list[Any]]
    secret: Mapped[str]
    created_at: Mapped[datetime]
    claimed_until: Mapped[datetime | None]
    paused_until: Mapped[datetime | None]
