from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base


class Invitation(Base):
    """An organization's part in a federation: invited, accepted (as the owner's is), declined, left or removed.

    `agreed_digest`: the accepted `definition_digest` of the federation; null for the owner, its author.
    """

    __tablename__ = "invitations"

    federation_id: Mapped[str] = mapped_column(ForeignKey("federations.id", ondelete="CASCADE"), primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True, index=True)
    state: Mapped[str]
    reason: Mapped[str | None]
    agreed_digest: Mapped[str | None]
    created_at: Mapped[datetime]
    answered_at: Mapped[datetime | None]
