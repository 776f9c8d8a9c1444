"""A POST with an `Idempotency-Key` is done once: sent again, it is answered as it was the first time.

A key belongs to its caller. It is claimed in a transaction of its own before the endpoint runs, and the answer is
recorded in the endpoint's: the change and its answer are kept together or not at all. A claim whose process died
lapses.
"""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from coordinator.auth.credentials import ENROLLMENT_PREFIX, hash_secret, secret_matches, split_secret
from coordinator.db.sessions import autocommit_reads, writing
from coordinator.errors import Conflict, FieldError, Unprocessable
from coordinator.models import EnrollmentToken, IdempotencyKey
from coordinator.settings import get_settings

HEADER = "Idempotency-Key"
CLAIM_SECONDS = 120.0
"""Longer than any request; one whose process died is taken over afterwards."""
MAX_KEY_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """An answer as it is given again."""

    status: int
    headers: dict[str, Any]
    body: str


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to answer for a key, held by one run of a request."""

    caller: str
    key: str
    token: str


def enrolling_caller(token: str) -> str | None:
    """The name of a worker that enrols: it is nobody yet but the bearer of its token. None: the token is nobody's."""
    parts = split_secret(ENROLLMENT_PREFIX, token)
    if parts is None or not (token.isascii() and token.isprintable()):
        return None
    with autocommit_reads() as connection:
        secret_sha256 = connection.scalar(select(EnrollmentToken.secret_sha256).where(EnrollmentToken.id == parts[0]))
    is_valid = secret_sha256 is not None and secret_matches(parts[1], secret_sha256)
    return f"token:{hash_secret(token)}" if is_valid else None


def claim(caller: str, key: str, fingerprint: str, now: datetime) -> Claim | StoredResponse:
    """The claim on a key, or what was answered when the same was asked before.

    Raises Unprocessable if the key is none or was used for another request, Conflict while that one runs.
    """
    if not (key.isascii() and key.isprintable() and 0 < len(key) <= MAX_KEY_CHARACTERS):
        raise _bad_key("idempotency_key_invalid", f"has 1 to {MAX_KEY_CHARACTERS} printable ASCII characters")
    taken = Claim(caller, key, secrets.token_hex(8))
    try:
        with writing() as session:
            return _claimed(session, taken, fingerprint, now)
    except IntegrityError:  # another process claimed the key between our look and our insert
        raise _running() from None


def _claimed(session: Session, claim: Claim, fingerprint: str, now: datetime) -> Claim | StoredResponse:
    row = _row(session, claim)
    if row is not None and row.expires_at > now:
        if row.fingerprint != fingerprint:
            raise _bad_key("idempotency_key_reused", "was used for another request; take a new one")
        if row.status is not None:
            return StoredResponse(row.status, row.headers or {}, row.body or "")
        if row.claimed_until > now:
            raise _running()
    if row is None:
        row = IdempotencyKey(caller=claim.caller, key=claim.key)
        session.add(row)
    row.fingerprint, row.claim, row.status = fingerprint, claim.token, None
    row.claimed_until = now + timedelta(seconds=CLAIM_SECONDS)
    row.expires_at = now + timedelta(seconds=get_settings().idempotency_key_seconds)
    session.flush()
    return claim


def record(session: Session, claim: Claim, answer: StoredResponse) -> None:
    """Keeps the answer. Raises Conflict if the claim lapsed and another run has taken over."""
    row = _row(session, claim)
    if row is None or row.claim != claim.token:
        raise Conflict("idempotency_key_lapsed", "The request took too long; its repetition is answered instead.")
    row.status, row.headers, row.body = answer.status, answer.headers, answer.body


def release(claim: Claim) -> None:
    """Lets go of a key whose request changed nothing: it may be sent anew."""
    with writing() as session:
        row = _row(session, claim)
        if row is not None and row.claim == claim.token:
            session.delete(row)


def delete_expired(now: datetime) -> None:
    """Deletes the keys that are older than `idempotency_key_seconds`."""
    with writing() as session:
        session.execute(delete(IdempotencyKey).where(IdempotencyKey.expires_at <= now))


def _row(session: Session, claim: Claim) -> IdempotencyKey | None:
    return session.get(IdempotencyKey, (claim.caller, claim.key), with_for_update=True, populate_existing=True)


def _running() -> Conflict:
    detail = "A request with this `Idempotency-Key` is still running. Ask again for its answer."
    return Conflict("idempotency_key_running", detail, retry_after_seconds=1.0)


def _bad_key(code: str, detail: str) -> Unprocessable:
    return Unprocessable(
        code, f"`{HEADER}` {detail}.", errors=[FieldError(pointer=f"#header/{HEADER}", detail=detail)]
    )
