"""Authentication and roles.

People and programs send an API key. Workers send a short-lived token signed with their own Ed25519 key. Both are
looked up at every request, so a revocation or an expiry takes effect with the next one. Secrets are stored as hashes
and compared in constant time. Resources of another organization are reported as not found.
"""

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal, TypeGuard

from fastapi import Depends, Request, Security
from fastapi.dependencies.models import Dependant
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from sqlalchemy import BindParameter, Connection, bindparam, select

from coordinator.auth import worker_tokens
from coordinator.auth.credentials import KEY_PREFIX, secret_matches, split_secret
from coordinator.auth.rate_limits import Buckets
from coordinator.db.batching import Batcher
from coordinator.db.sessions import autocommit_reads, utcnow
from coordinator.errors import Forbidden, NotFound, TooManyRequests, Unauthenticated
from coordinator.models import ApiKey, Worker
from coordinator.settings import get_settings

# Built once, since every request runs them: building a statement costs more than running it.
_IDS: BindParameter[str] = bindparam("ids", expanding=True)
_KEYS = select(
    ApiKey.id, ApiKey.organization_id, ApiKey.role, ApiKey.secret_sha256, ApiKey.revoked_at, ApiKey.expires_at
).where(ApiKey.id.in_(_IDS))
_SIGNERS = select(Worker.id, Worker.organization_id, Worker.public_key, Worker.revoked_at).where(Worker.id.in_(_IDS))

NOT_YOURS = "There is nothing under this address, or it is not yours to see."
"""The same text for a missing resource and for one of another organization."""

Gate = Callable[[Request], Awaitable["Principal"]]
Role = Literal["admin", "owner", "operator", "viewer", "worker"]
_ALL_ROLES: tuple[Role, ...] = ("owner", "operator", "viewer", "worker")


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller. Only an admin's key belongs to no organization."""

    kind: Literal["key", "worker"]
    id: str
    organization_id: str | None
    role: Role

    @property
    def reader(self) -> str:
        """The id that owns uploads and holds read grants: the worker's, or that of the key's organization."""
        return self.id if self.kind == "worker" or self.organization_id is None else self.organization_id


def authenticate(connection: Connection, tokens: Sequence[str]) -> list[Principal | Unauthenticated]:
    """For each API key or worker token its principal, or the error."""
    names = [_name_in(token) for token in tokens]
    keys = _keys(connection, {name.text for name in names if isinstance(name, _Name) and name.kind == "key"})
    workers = _workers(connection, {name.text for name in names if isinstance(name, _Name) and name.kind == "worker"})
    return [_verify(token, name, keys, workers) for token, name in zip(tokens, names, strict=True)]


@dataclass(frozen=True, slots=True)
class _Name:
    """The key or worker that a token names, before any check."""

    kind: Literal["key", "worker"]
    text: str


def _name_in(token: str) -> _Name | Unauthenticated:
    if not _is_plain(token):
        return Unauthenticated("token_invalid", "The bearer token has characters that no key and no token has.")
    if token.startswith(KEY_PREFIX):
        parts = split_secret(KEY_PREFIX, token)
        return _Name("key", parts[0]) if parts else _key_invalid()
    try:
        worker_id = worker_tokens.unverified_worker_id(token)
    except Unauthenticated as reason:
        return reason
    return _Name("worker", worker_id) if _is_plain(worker_id) else _worker_unknown()


def _is_plain(text: object) -> TypeGuard[str]:
    """Whether it is a text that can be looked up: PostgreSQL takes no NUL, and no database a lone surrogate."""
    return isinstance(text, str) and text.isascii() and text.isprintable()


@dataclass(frozen=True, slots=True)
class _Holder:
    """The columns of a key's row that authentication needs."""

    id: str
    organization_id: str | None
    role: str
    secret_sha256: str
    revoked_at: datetime | None
    expires_at: datetime | None


def _keys(connection: Connection, ids: Collection[str]) -> dict[str, _Holder]:
    return {row.id: _Holder(*row) for row in connection.execute(_KEYS, {"ids": list(ids)})} if ids else {}


@dataclass(frozen=True, slots=True)
class _Signer:
    """The columns of a worker's row that authentication needs."""

    id: str
    organization_id: str
    public_key: str
    revoked_at: datetime | None


def _workers(connection: Connection, ids: Collection[str]) -> dict[str, _Signer]:
    return {row.id: _Signer(*row) for row in connection.execute(_SIGNERS, {"ids": list(ids)})} if ids else {}


def _verify(
    token: str, name: _Name | Unauthenticated, keys: Mapping[str, _Holder], workers: Mapping[str, _Signer]
) -> Principal | Unauthenticated:
    if isinstance(name, Unauthenticated):
        return name
    try:
        return _holder(token, keys.get(name.text)) if name.kind == "key" else _signer(token, workers.get(name.text))
    except Unauthenticated as reason:
        return reason


def _key_invalid() -> Unauthenticated:
    return Unauthenticated("key_invalid", "This API key is not known here.")


_END_DETAILS = {
    "key_revoked": "This API key was revoked; an owner can make another.",
    "key_expired": "This API key has expired; an owner can make another.",
    "worker_revoked": "This worker was revoked. Enroll it again with a new token.",
}


def credentials_error(code: str) -> Unauthenticated:
    """The error for revoked or expired credentials, by its code."""
    return Unauthenticated(code, _END_DETAILS[code])


def _worker_unknown() -> Unauthenticated:
    return Unauthenticated("worker_unknown", "The header `kid` of the token names no enrolled worker.")


def _holder(token: str, key: _Holder | None) -> Principal:
    parts = split_secret(KEY_PREFIX, token)
    if parts is None or key is None or not secret_matches(parts[1], key.secret_sha256):
        raise _key_invalid()
    if key.revoked_at is not None:
        raise credentials_error("key_revoked")
    if key.expires_at is not None and key.expires_at <= utcnow():
        raise credentials_error("key_expired")
    return Principal("key", key.id, key.organization_id, key.role)  # type: ignore[arg-type]


def _signer(token: str, worker: _Signer | None) -> Principal:
    if worker is None:
        raise _worker_unknown()
    worker_tokens.check(token, worker.id, worker.public_key)
    if worker.revoked_at is not None:
        raise credentials_error("worker_revoked")
    return Principal("worker", worker.id, worker.organization_id, "worker")


def require_role(principal: Principal, *roles: Role, organization_id: str | None = None) -> None:
    """Passes an admin, and a principal with one of `roles` that belongs to `organization_id`, if given.

    Raises NotFound for a principal of another organization, Forbidden for a role that does not suffice.
    """
    if principal.role == "admin":
        return
    if organization_id is not None and principal.organization_id != organization_id:
        raise NotFound("not_found", NOT_YOURS)
    if principal.role not in roles:
        names = " or ".join(roles) if roles else "admin"
        raise Forbidden("role_too_small", f"This needs the role {names}; the credentials have {principal.role}.")


_KEY_SCHEME = {
    "scheme_name": "api_key",
    "bearerFormat": "flk_…",
    "description": "An API key of an organization or of the installation.",
}
_WORKER_SCHEME = {
    "scheme_name": "worker_token",
    "bearerFormat": "JWT",
    "description": "A short-lived token (EdDSA) that an enrolled worker signs for itself.",
}
_Header = HTTPAuthorizationCredentials | None
_buckets = Buckets(time.monotonic)


def _authenticate_all(tokens: Sequence[str]) -> list[Principal | Unauthenticated]:
    with autocommit_reads() as connection:
        return authenticate(connection, tokens)


_authenticate_in_batches = Batcher(_authenticate_all, pause_seconds=0.04, only_if_busy=True)


async def identify(request: Request) -> Principal | None:
    """The caller, authenticated and rate-limited once per request; None without credentials.

    Raises Unauthenticated, TooManyRequests.
    """
    earlier: Principal | None = getattr(request.state, "principal", None)
    if earlier is not None:
        return earlier
    scheme, token = get_authorization_scheme_param(request.headers.get("Authorization"))
    if scheme.lower() != "bearer" or not token:
        return None
    principal = await _authenticate_in_batches(token)
    _count(principal)
    request.state.principal = principal
    return principal


def _count(principal: Principal) -> None:
    limit = get_settings().requests_per_second
    wait_seconds = _buckets.take(principal.id, limit) if limit else 0.0
    if wait_seconds:
        detail = f"These credentials send more than {limit:g} requests per second. Wait as `Retry-After` says."
        raise TooManyRequests("rate_limited", detail, retry_after_seconds=wait_seconds)


async def _principal(request: Request) -> Principal:
    principal = await identify(request)
    if principal is None:
        raise Unauthenticated("credentials_missing", "Send `Authorization: Bearer <API key or worker token>`.")
    return principal


class _CallerScheme(HTTPBearer):
    """A security scheme that returns the principal itself, which saves every request one dependency.

    `roles`: the roles that may call the operation, besides the admin. The service checks the organization.
    """

    def __init__(
        self,
        kind: Literal["key", "worker"],
        code: str,
        detail: str,
        scheme: Mapping[str, str],
        roles: tuple[Role, ...] = _ALL_ROLES,
    ) -> None:
        super().__init__(**scheme, auto_error=False)
        self._kind, self._code, self._detail = kind, code, detail
        self._roles = roles

    async def __call__(self, request: Request) -> Principal:  # type: ignore[override]
        principal = await _principal(request)
        if principal.kind != self._kind:
            raise Forbidden(self._code, self._detail)
        require_role(principal, *self._roles)
        return principal


def _key(*roles: Role) -> _CallerScheme:
    return _CallerScheme("key", "api_key_needed", "This is for API keys, not for workers.", _KEY_SCHEME, roles)


async def _any_principal(
    request: Request,
    header: Annotated[_Header, Security(HTTPBearer(**_KEY_SCHEME, auto_error=False))],
    worker_header: Annotated[_Header, Security(HTTPBearer(**_WORKER_SCHEME, auto_error=False))],
) -> Principal:
    return await _principal(request)


AnyPrincipal = Annotated[Principal, Depends(_any_principal)]
KeyPrincipal = Annotated[Principal, Security(_key(*_ALL_ROLES))]
OperatorPrincipal = Annotated[Principal, Security(_key("owner", "operator"))]
OwnerPrincipal = Annotated[Principal, Security(_key("owner"))]
AdminPrincipal = Annotated[Principal, Security(_key())]
_worker = _CallerScheme("worker", "worker_needed", "This is for enrolled workers, not for API keys.", _WORKER_SCHEME)
WorkerPrincipal = Annotated[Principal, Security(_worker)]


def gates(dependant: Dependant) -> list[Gate]:
    """The caller checks of an operation, which run before its body is read."""
    result: list[Gate] = []
    for dependency in dependant.dependencies:
        if isinstance(dependency.call, _CallerScheme):
            result.append(dependency.call)
        elif dependency.call is _any_principal:
            result.append(_principal)
        else:
            result += gates(dependency)
    return result
