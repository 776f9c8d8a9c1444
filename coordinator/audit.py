"""Audit log: actor, action and time of every act, in tamper-evident hash chains.

There is a chain for each organization and one for the installation. An act adds an entry to the chain of every
organization that it concerns, at the end of its own transaction. The heads of the chains are locked last and in one
order, so that two transactions neither fork a chain nor deadlock.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal, get_args

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from coordinator.db.sessions import before_commit, lock_row, utcnow
from coordinator.models import AuditChain, AuditEntry
from federated.signed_statement import canonical_json

INSTALLATION: Final = "installation"
"""The chain of acts that concern no organization, or the list of organizations."""
COORDINATOR: Final = "coordinator"
"""The actor of acts that no caller requested: the software itself, or its command line."""
START: Final = "0" * 64
"""`previous_hash` of a chain's first entry."""

Action = Literal[
    "organization.created",
    "api_key.created",
    "api_key.revoked",
    "enrollment_token.created",
    "enrollment_token.revoked",
    "worker.enrolled",
    "worker.revoked",
    "worker.key_rotated",
    "worker.doubled",
    "federation.created",
    "federation.changed",
    "federation.started",
    "federation.paused",
    "federation.resumed",
    "federation.completed",
    "federation.failed",
    "federation.cancelled",
    "federation.deleted",
    "invitation.invited",
    "invitation.accepted",
    "invitation.declined",
    "invitation.left",
    "invitation.removed",
    "client.registered",
    "client.restored",
    "client.out",
    "client.left",
    "client.expelled",
    "adapter.downloaded",
    "webhook.created",
    "webhook.deleted",
]
ACTIONS: Final = frozenset(get_args(Action))
_PENDING: Final = "fedloom_audit"


@dataclass(frozen=True, slots=True)
class _Act:
    at: datetime
    by: str
    action: str
    target: str
    organizations: list[str]
    details: dict[str, Any]
    chains: Collection[str]


def append(
    session: Session, by: str, action: str, target: str, organizations: Iterable[str | None], **details: Any
) -> None:
    """Adds the act to the chains of these organizations before the commit; None is the installation's chain.

    `details` must be JSON, without secrets and without anything that one of the organizations may not read.
    """
    if action not in ACTIONS:
        raise ValueError(f"no such action: {action}")
    pending: list[_Act] | None = session.info.get(_PENDING)
    if pending is None:
        pending = session.info[_PENDING] = []
        before_commit(session, partial(_write, session, pending), last=True)
    ids = set(organizations)
    organization_ids = sorted(identity for identity in ids if identity is not None)
    chains = {identity or INSTALLATION for identity in ids}
    pending.append(_Act(utcnow(), by, action, target, organization_ids, details, chains))


def _write(session: Session, acts: Iterable[_Act]) -> None:
    session.flush()  # this transaction takes its other locks before those on the heads
    heads = {chain: _lock_head(session, chain) for chain in sorted({chain for act in acts for chain in act.chains})}
    for act in acts:
        for chain in sorted(act.chains):
            session.add(_link(heads[chain], act))


def _lock_head(session: Session, chain: str) -> AuditChain:
    head = lock_row(session, AuditChain, chain)
    if head is None:  # the chain's first entry: of two concurrent inserts, the second waits for the first
        insert = text(
            "INSERT INTO audit_chains (chain, number, hash) VALUES (:chain, 0, :start) ON CONFLICT DO NOTHING"
        )
        session.execute(insert, {"chain": chain, "start": START})
        head = lock_row(session, AuditChain, chain)
    assert head is not None  # noqa: S101 - it existed, or was just inserted
    return head


def _link(head: AuditChain, act: _Act) -> AuditEntry:
    entry = AuditEntry(
        chain=head.chain,
        number=head.number + 1,
        at=act.at,
        by=act.by,
        action=act.action,
        target=act.target,
        organizations=act.organizations,
        details=act.details,
        previous_hash=head.hash,
    )
    entry.hash = _hash(entry)
    head.number, head.hash = entry.number, entry.hash
    return entry


def document_of(entry: AuditEntry) -> dict[str, Any]:
    """The entry as the API returns it and as it is hashed: everything but the hash itself."""
    return {
        "chain": entry.chain,
        "number": entry.number,
        "at": entry.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "by": entry.by,
        "action": entry.action,
        "target": entry.target,
        "organizations": entry.organizations,
        "details": entry.details,
        "previous_hash": entry.previous_hash,
    }


def _hash(entry: AuditEntry) -> str:
    return hashlib.sha256(canonical_json(document_of(entry))).hexdigest()


class ChainBroken(Exception):
    """A chain fails verification; the text names the first entry that does."""


def verify(session: Session) -> Iterator[str]:
    """Verifies all chains. Yields a line for each intact one, with its last hash to compare with an earlier report.

    Raises ChainBroken at the first entry that fails.
    """
    heads = {head.chain: head for head in session.scalars(select(AuditChain))}
    chains = sorted({*heads, *session.scalars(select(AuditEntry.chain).distinct())})
    for chain in chains:
        number, last = _verify_chain(session, chain)
        head = heads.get(chain)
        if head is None:
            raise ChainBroken(f"{chain}: its head is missing")
        if (head.number, head.hash) != (number, last):
            raise ChainBroken(f"{chain}: it ends with entry {number}, its head names entry {head.number}")
        yield f"{chain}: {number} entries, {last}"


def _verify_chain(session: Session, chain: str) -> tuple[int, str]:
    number, last = 0, START
    statement = select(AuditEntry).where(AuditEntry.chain == chain).order_by(AuditEntry.number)
    with session.scalars(statement.execution_options(yield_per=1000)) as entries:
        for entry in entries:
            number += 1
            if entry.number != number:
                raise ChainBroken(f"{chain}: entry {number} is missing")
            if entry.previous_hash != last:
                raise ChainBroken(f"{chain}: entry {number} does not follow entry {number - 1}")
            if entry.hash != _hash(entry):
                name = f"entry {number} ({entry.action} at {entry.at:%Y-%m-%d %H:%M})"
                raise ChainBroken(f"{chain}: {name} was changed")
            last = entry.hash
    return number, last
