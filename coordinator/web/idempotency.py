"""Idempotency keys: a POST with an `Idempotency-Key` takes effect once, and a repetition gets the same response.

A key belongs to its caller. It is claimed in a separate transaction before the endpoint runs. The response is stored
in the endpoint's transaction, so the change and its response are kept together or not at all. The claim of a process
that died expires.
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
"""Longer than any request. Afterwards a repetition takes over the claim of a process that died."""
MAX_KEY_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response stored for repetitions of its request."""

    status: int
    headers: dict[str, Any]
    body: str


@dataclass(frozen=True, slots=True)
class Claim:
    """The right of one run of a request to store the response for a key."""

    caller: str
    key: str
    token: str


def enrolling_caller(token: str) -> str | None:
    """The caller's name for an enrolling worker, derived from its token; None for an unknown token."""
    parts = split_secret(ENROLLMENT_PREFIX, token)
    if parts is None or not (token.isascii() and token.isprintable()):
        return None
    with autocommit_reads() as connection:
        secret_sha256 = connection.scalar(select(EnrollmentToken.secret_sha256).where(EnrollmentToken.id == parts[0]))
    is_valid = secret_sha256 is not None and secret_matches(parts[1], secret_sha256)
    return f"token:{hash_secret(token)}" if is_valid else None


def claim(caller: str, key: str, fingerprint: str, now: datetime) -> Claim | StoredResponse:
    """Claims a key, or returns the stored response of an earlier equal request.

    Raises Unprocessable for an invalid key or one used for another request, Conflict while the earlier one runs.
    """
    if not (key.isascii() and key.isprintable() and 0 < len(key) <= MAX_KEY_CHARACTERS):
        raise _bad_key("idempotency_key_invalid", f"has 1 to {MAX_KEY_CHARACTERS} printable ASCII characters")
    own_claim = Claim(caller, key, secrets.token_hex(8))
    try:
        with writing() as session:
            return _claim_row(session, own_claim, fingerprint, now)
    except IntegrityError:  # another process claimed the key between our SELECT and our INSERT
        raise _running() from None


def _claim_row(session: Session, claim: Claim, fingerprint: str, now: datetime) -> Claim | StoredResponse:
    row = _row(session, claim)
    if row is not None and row.expires_at > now:
        if row.fingerprint != fingerprint:
            raise _bad_key("idempotency_key_reused", "was used for another request; use a new one")
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


def record(session: Session, claim: Claim, response: StoredResponse) -> None:
    """Stores the response. Raises Conflict if the claim expired and another run has taken over."""
    row = _row(session, claim)
    if row is None or row.claim != claim.token:
        raise Conflict("idempotency_key_lapsed", "The request took too long, and a repetition has taken over.")
    row.status, row.headers, row.body = response.status, response.headers, response.body


def release(claim: Claim) -> None:
    """Releases the key of a request that changed nothing, so that the request can be repeated."""
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
    detail = "A request with this `Idempotency-Key` is still running. Repeat it to get the response."
    return Conflict("idempotency_key_running", detail, retry_after_seconds=1.0)


def _bad_key(code: str, detail: str) -> Unprocessable:
    return Unprocessable(
        code, f"`{HEADER}` {detail}.", errors=[FieldError(pointer=f"#header/{HEADER}", detail=detail)]
    )
