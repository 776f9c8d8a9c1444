from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base
from federated.signed_statement import definition_digest


class Federation(Base):
    """A federation. `definition` is the validated request, `state_digest` the newest aggregated state.

    `waiting_since` is the time of the last start or resumption; the reason for waiting is computed on request.
    `version` counts changes.
    """

    __tablename__ = "federations"

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    name: Mapped[str]
    state: Mapped[str] = mapped_column(index=True)
    reason: Mapped[str | None]
    reason_detail: Mapped[str | None]
    definition: Mapped[dict[str, Any]]
    seed: Mapped[int] = mapped_column(BigInteger)
    model_facts: Mapped[dict[str, Any] | None]
    state_digest: Mapped[str | None]
    waiting_since: Mapped[datetime | None]
    next_ordinal: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    @property
    def definition_digest(self) -> str:
        """Digest of everything that an organization agrees to: name, owner and the whole definition."""
        return definition_digest(
            {"name": self.name, "organization_id": self.organization_id, "definition": self.definition}
        )
