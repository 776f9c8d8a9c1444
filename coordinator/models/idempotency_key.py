from datetime import datetime
from typing import Any

from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base


class IdempotencyKey(Base):
    """POST with an idempotency key: the fingerprint of the request, and the stored response.

    `status` is null while it runs. `claim` names the run that may store the response, until `claimed_until`.
    """

    __tablename__ = "idempotency_keys"

    caller: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    claim: Mapped[str]
    claimed_until: Mapped[datetime]
    status: Mapped[int | None]
    headers: Mapped[dict[str, Any] | None]
    body: Mapped[str | None]
    expires_at: Mapped[datetime] = mapped_column(index=True)
