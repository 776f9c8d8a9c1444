"""Who asks, and what that one may do.

People and programs carry an API key, workers a short-lived token signed with their own Ed25519 key. Both are
looked up at every request, so a revocation holds from the next one on. Secrets are stored as hashes and compared
in constant time. What belongs to another organisation is answered like what does not exist.
"""

import hashlib
import hmac
import secrets
import time
from base64 import urlsafe_b64decode
from dataclasses import dataclass
from typing import Annotated, Literal

import jwt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from sqlalchemy.orm import Session

from coordinator.database import reading
from coordinator.errors import Forbidden, NotFound, TooManyRequests, Unauthenticated
from coordinator.models import ApiKey, Worker
from coordinator.rate_limits import Buckets
from coordinator.settings import get_settings

KEY_PREFIX = "flk_"
ENROLLMENT_PREFIX = "fle_"
AUDIENCE = "fedloom"
PUBLIC_KEY_BYTES = 32
_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P)

NOT_YOURS = "There is nothing under this address, or it is not yours to see."
"""Said of what is not there and of what is another organisation's alike."""

Role = Literal["admin", "owner", "operator", "viewer", "worker"]
_REQUIRED_CLAIMS = ["iss", "aud", "iat", "exp", "jti"]
_UNREADABLE = (jwt.PyJWTError, ArithmeticError, RecursionError, TypeError, ValueError)
"""What PyJWT raises for tokens that are none: its own errors, and others where a claim is of another kind."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. Only an admin's key belongs to no organisation."""

    kind: Literal["key", "worker"]
    id: str
    organization_id: str | None
    role: Role

    @property
    def reader(self) -> str:
        """The name under which uploads are kept and reading is granted: the worker, or the key's organisation."""
        return self.id if self.kind == "worker" or self.organization_id is None else self.organization_id


def new_secret(prefix: str, id: str) -> tuple[str, str]:  # noqa: A002 - the id is what it is everywhere else
    """A text to hand out once, `<prefix><id>_<secret>`, and the hash of its secret to keep."""
    secret = secrets.token_hex(32)
    return f"{prefix}{id}_{secret}", hash_secret(secret)


def split_secret(prefix: str, text: str) -> tuple[str, str] | None:
    """Id and secret of such a text, or None if it is none."""
    if not text.startswith(prefix):
        return None
    identity, _, secret = text.removeprefix(prefix).rpartition("_")
    return (identity, secret) if identity and secret else None


def hash_secret(secret: str) -> str:
    """SHA-256, hexadecimal. The secrets are random, 256 bits: a slow hash would protect nothing more."""
    return hashlib.sha256(secret.encode()).hexdigest()


def secret_matches(secret: str, secret_sha256: str) -> bool:
    """Whether the secret is the one whose hash was kept, in constant time."""
    return hmac.compare_digest(hash_secret(secret), secret_sha256)


def read_public_key(text: str) -> Ed25519PublicKey:
    """The key from base64url of its 32 raw bytes. Raises ValueError."""
    raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if len(raw) != PUBLIC_KEY_BYTES:
        raise ValueError(f"an Ed25519 public key has {PUBLIC_KEY_BYTES} bytes, this one {len(raw)}")
    if _has_small_order(raw):
        raise ValueError("this Ed25519 key is of small order: one signature would hold over many messages")
    return Ed25519PublicKey.from_public_bytes(raw)


def _has_small_order(raw: bytes) -> bool:
    """Whether eight times the point is zero: y is 0, 1 or -1, or d y^4 + 2 y^2 = 1 (RFC 8032, 5.1: p and d)."""
    y = (int.from_bytes(raw, "little") & (1 << 255) - 1) % _P
    return y in (0, 1, _P - 1) or (_D * y**4 + 2 * y**2 - 1) % _P == 0


def signature_holds(public_key: str, signature: str, message: bytes) -> bool:
    """Whether the Ed25519 key signed these bytes; False too for what is neither a key nor a signature."""
    try:
        read_public_key(public_key).verify(urlsafe_b64decode(signature + "=" * (-len(signature) % 4)), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def authenticate(session: Session, token: str) -> Principal:
    """The principal whose key or worker token this is. Raises Unauthenticated."""
    if not _is_plain(token):
        raise Unauthenticated("token_invalid", "The bearer token has characters that no key and no token has.")
    if token.startswith(KEY_PREFIX):
        return _authenticate_key(session, token)
    return _authenticate_worker(session, token)


def _is_plain(text: object) -> bool:
    """Whether it is a text that can be looked up: PostgreSQL takes no NUL, and no database half a surrogate pair."""
    return isinstance(text, str) and text.isascii() and text.isprintable()


def _authenticate_key(session: Session, token: str) -> Principal:
    parts = split_secret(KEY_PREFIX, token)
    key = session.get(ApiKey, parts[0]) if parts else None
    if parts is None or key is None or not secret_matches(parts[1], key.secret_sha256):
        raise Unauthenticated("key_invalid", "This API key is not known here.")
    if key.revoked_at is not None:
        raise Unauthenticated("key_revoked", "This API key was revoked; an owner can make another.")
    return Principal("key", key.id, key.organization_id, key.role)  # type: ignore[arg-type]


def _authenticate_worker(session: Session, token: str) -> Principal:
    try:
        worker_id = jwt.get_unverified_header(token).get("kid")
    except _UNREADABLE:
        raise Unauthenticated("token_invalid", "The bearer token is neither an API key nor a worker token.") from None
    worker = session.get(Worker, worker_id) if _is_plain(worker_id) else None
    if worker is None:
        raise Unauthenticated("worker_unknown", "The header `kid` of the token names no enrolled worker.")
    _check_worker_token(token, worker)
    if worker.revoked_at is not None:
        raise Unauthenticated("worker_revoked", "This worker was revoked. Enrol it again with a new token.")
    return Principal("worker", worker.id, worker.organization_id, "worker")


def _check_worker_token(token: str, worker: Worker) -> None:
    settings = get_settings()
    try:
        claims = jwt.decode(
            token,
            read_public_key(worker.public_key),
            algorithms=["EdDSA"],
            audience=AUDIENCE,
            issuer=worker.id,
            leeway=settings.clock_skew_seconds,
            options={"require": _REQUIRED_CLAIMS},
        )
        lifetime_seconds = float(claims["exp"]) - float(claims["iat"])
    except jwt.ExpiredSignatureError:
        raise Unauthenticated("token_expired", "The worker token has expired. Is the clock right?") from None
    except _UNREADABLE as error:
        raise Unauthenticated("token_invalid", f"The worker token does not hold: {error}.") from None
    if not lifetime_seconds <= settings.worker_token_seconds:
        raise Unauthenticated(
            "token_too_long", f"A worker token lives at most {settings.worker_token_seconds:g} s (exp - iat)."
        )


def require_role(principal: Principal, *roles: Role, organization_id: str | None = None) -> None:
    """Lets an admin pass, and a principal with one of `roles` in the organisation, if one is named.

    Raises NotFound for another organisation's principal, Forbidden for too small a role.
    """
    if principal.role == "admin":
        return
    if organization_id is not None and principal.organization_id != organization_id:
        raise NotFound("not_found", NOT_YOURS)
    if principal.role not in roles:
        allowed = " or ".join(roles) if roles else "admin"
        raise Forbidden("role_too_small", f"This needs the role {allowed}; the credentials have {principal.role}.")


_key_scheme = HTTPBearer(
    scheme_name="api_key",
    bearerFormat="flk_…",
    description="An API key of an organization or of the installation.",
    auto_error=False,
)
_worker_scheme = HTTPBearer(
    scheme_name="worker_token",
    bearerFormat="JWT",
    description="A short-lived token (EdDSA) that an enrolled worker signs for itself.",
    auto_error=False,
)
_Header = HTTPAuthorizationCredentials | None


_buckets = Buckets(time.monotonic)


def identify(request: Request) -> Principal | None:
    """Who asks, found and counted once per request; None if no credentials came.

    Raises Unauthenticated, TooManyRequests.
    """
    known: Principal | None = getattr(request.state, "principal", None)
    if known is not None:
        return known
    scheme, token = get_authorization_scheme_param(request.headers.get("Authorization"))
    if scheme.lower() != "bearer" or not token:
        return None
    with reading() as session:
        principal = authenticate(session, token)
    _count(principal)
    request.state.principal = principal
    return principal


def _count(principal: Principal) -> None:
    limit = get_settings().requests_per_second
    wait_seconds = _buckets.take(principal.id, limit) if limit else 0.0
    if wait_seconds:
        detail = f"These credentials send more than {limit:g} requests per second. Wait as `Retry-After` says."
        raise TooManyRequests("rate_limited", detail, retry_after_seconds=wait_seconds)


def _principal(request: Request) -> Principal:
    principal = identify(request)
    if principal is None:
        raise Unauthenticated("credentials_missing", "Send `Authorization: Bearer <API key or worker token>`.")
    return principal


def _any_principal(
    request: Request,
    header: Annotated[_Header, Security(_key_scheme)],
    worker_header: Annotated[_Header, Security(_worker_scheme)],
) -> Principal:
    return _principal(request)


def _key_principal(request: Request, header: Annotated[_Header, Security(_key_scheme)]) -> Principal:
    principal = _principal(request)
    if principal.kind != "key":
        raise Forbidden("api_key_needed", "This is for API keys, not for workers.")
    return principal


def _worker_principal(request: Request, header: Annotated[_Header, Security(_worker_scheme)]) -> Principal:
    principal = _principal(request)
    if principal.kind != "worker":
        raise Forbidden("worker_needed", "This is for enrolled workers, not for API keys.")
    return principal


def _admin_principal(request: Request, header: Annotated[_Header, Security(_key_scheme)]) -> Principal:
    principal = _key_principal(request, header)
    require_role(principal)
    return principal


AnyPrincipal = Annotated[Principal, Depends(_any_principal)]
KeyPrincipal = Annotated[Principal, Depends(_key_principal)]
WorkerPrincipal = Annotated[Principal, Depends(_worker_principal)]
AdminPrincipal = Annotated[Principal, Depends(_admin_principal)]
