from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.models.base import Base


class AuditChain(Base):
    """Head of a chain of audit entries: number and hash of its last entry. Locked while an entry is added.

    `chain` is an organization's id, or `audit.INSTALLATION`.
    """

    __tablename__ = "audit_chains"

    chain: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[str]


class AuditEntry(Base):
    """Entry of an act in one chain. Triggers reject updates and deletions. No foreign keys: it outlives its targets.

    `by` is the id of a key or a worker, or "coordinator"; `organizations` are the ids of all that the act concerns.
    """

    __tablename__ = "audit_entries"

    chain: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    by: Mapped[str]
    action: Mapped[str]
    target: Mapped[str]
    organizations: Mapped[list[Any]]
    details: Mapped[dict[str, Any]]
    previous_hash: Mapped[str]
    hash: Mapped[str]
