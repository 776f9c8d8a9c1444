"""Tokens that workers sign for themselves: a JWT (RFC 7519, EdDSA), good for a minute or so.

A worker's agent sends one more than once. What was proven of it is remembered, so that its signature is checked once;
who it is of, whether that worker was revoked, and the time are looked at with each request.
"""

import time
from functools import lru_cache

import jwt

from coordinator.auth.credentials import read_public_key
from coordinator.errors import Unauthenticated
from coordinator.settings import get_settings

AUDIENCE = "fedloom"
_REQUIRED_CLAIMS = ["iss", "aud", "iat", "exp", "jti"]
_UNREADABLE = (jwt.PyJWTError, ArithmeticError, RecursionError, TypeError, ValueError)
"""What PyJWT raises for tokens that are none: its own errors, and others where a claim is of another kind."""
_REMEMBERED = 4096
_LONGEST_REMEMBERED = 1024  # characters, three times what an agent sends: a worker cannot fill the memory with them


def claimed(token: str) -> object:
    """The worker that the token names (`kid`), not proven yet. Raises Unauthenticated for what is no token."""
    try:
        return jwt.get_unverified_header(token).get("kid")
    except _UNREADABLE:
        raise Unauthenticated("token_invalid", "The bearer token is neither an API key nor a worker token.") from None


def check(token: str, worker_id: str, public_key: str) -> None:
    """Raises Unauthenticated unless the worker with this key signed the token, for now and not for too long."""
    settings = get_settings()
    prove = _proven if len(token) <= _LONGEST_REMEMBERED else _proven.__wrapped__
    try:
        expires, lifetime_seconds = prove(token, worker_id, public_key)
    except jwt.ExpiredSignatureError:
        raise _expired() from None
    except _UNREADABLE as error:
        raise Unauthenticated("token_invalid", f"The worker token does not hold: {error}.") from None
    if expires + settings.clock_skew_seconds <= time.time():
        raise _expired()
    if not lifetime_seconds <= settings.worker_token_seconds:
        raise Unauthenticated(
            "token_too_long", f"A worker token lives at most {settings.worker_token_seconds:g} s (exp - iat)."
        )


@lru_cache(maxsize=_REMEMBERED)
def _proven(token: str, worker_id: str, public_key: str) -> tuple[float, float]:
    """When it expires, in seconds since 1970, and how long it lives. What raises an error is not remembered."""
    claims = jwt.decode(
        token,
        read_public_key(public_key),
        algorithms=["EdDSA"],
        audience=AUDIENCE,
        issuer=worker_id,
        leeway=get_settings().clock_skew_seconds,
        options={"require": _REQUIRED_CLAIMS},
    )
    return float(claims["exp"]), float(claims["exp"]) - float(claims["iat"])


def _expired() -> Unauthenticated:
    return Unauthenticated("token_expired", "The worker token has expired. Is the clock right?")
