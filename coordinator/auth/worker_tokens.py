"""Worker tokens: JWTs (RFC 7519, EdDSA) that workers sign for themselves, valid for about a minute.

An agent sends each token several times. The result of its signature check is cached. The worker's key, its
revocation and the expiry are checked at every request.
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
"""PyJWT's errors for malformed tokens: its own, and others where a claim has the wrong type."""
_CACHE_SIZE = 4096
_CACHE_MAX_CHARACTERS = 1024  # three times the length of an agent's token: a worker cannot fill the memory with them


def unverified_worker_id(token: str) -> object:
    """The worker that the token names (`kid`), before any check. Raises Unauthenticated for a malformed token."""
    try:
        return jwt.get_unverified_header(token).get("kid")
    except _UNREADABLE:
        raise Unauthenticated("token_invalid", "The bearer token is neither an API key nor a worker token.") from None


def check(token: str, worker_id: str, public_key: str) -> None:
    """Raises Unauthenticated unless the token is signed with the worker's key, unexpired and not too long-lived."""
    settings = get_settings()
    verify = _verify if len(token) <= _CACHE_MAX_CHARACTERS else _verify.__wrapped__
    try:
        expires, lifetime_seconds = verify(token, worker_id, public_key)
    except jwt.ExpiredSignatureError:
        raise _expiry_error() from None
    except _UNREADABLE as error:
        raise Unauthenticated("token_invalid", f"The worker token is not valid: {error}.") from None
    if expires + settings.clock_skew_seconds <= time.time():
        raise _expiry_error()
    if not lifetime_seconds <= settings.worker_token_seconds:
        raise Unauthenticated(
            "token_too_long", f"A worker token lives at most {settings.worker_token_seconds:g} s (exp - iat)."
        )


@lru_cache(maxsize=_CACHE_SIZE)
def _verify(token: str, worker_id: str, public_key: str) -> tuple[float, float]:
    """Expiry in seconds since 1970, and lifetime in seconds. Errors are not cached."""
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


def _expiry_error() -> Unauthenticated:
    return Unauthenticated("token_expired", "The worker token has expired. Is the clock right?")
