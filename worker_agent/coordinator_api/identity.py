"""Identity of this worker: an Ed25519 key pair generated here, the id that the coordinator gave, and its URL.

The private key never leaves `<folder>/identity/key.pem` (mode 0600). Each request carries a token signed with it: a
JWT (RFC 7519, EdDSA) that is valid for one minute and used for the first half of it. The key also signs updates and
the requests that register it.
"""

import base64
import math
import stat
import uuid
from dataclasses import dataclass
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from pydantic import BaseModel, ConfigDict, ValidationError

from federated.atomic_files import move, write_file
from worker_agent.errors import ConfigurationError, NotEnrolled

AUDIENCE = "fedloom"
TOKEN_SECONDS = 60
USED_SECONDS = 30
_KEY_FILE = "key.pem"
_NEXT_KEY_FILE = "key.next.pem"
_WORKER_FILE = "worker.json"


class WorkerRecord(BaseModel):
    """The coordinator's response at enrollment, and its URL."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    url: str
    worker_id: str
    organization_id: str
    organization_name: str
    name: str


@dataclass(frozen=True, slots=True)
class Identity:
    """An enrolled worker. `repr` does not show the key."""

    record: WorkerRecord
    key: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"Identity({self.record.worker_id!r} at {self.record.url!r})"

    def token(self, now_seconds: float) -> str:
        """A signed token for the 60 s from `now_seconds` (Unix time by the coordinator's clock)."""
        issued_at = int(now_seconds)
        claims = {
            "iss": self.record.worker_id,
            "aud": AUDIENCE,
            "iat": issued_at,
            "exp": issued_at + TOKEN_SECONDS,
            "jti": uuid.uuid4().hex,
        }
        return jwt.encode(claims, self.key, algorithm="EdDSA", headers={"kid": self.record.worker_id})

    def sign(self, message: bytes) -> str:
        """The signature of these bytes, base64url without padding."""
        return signature(self.key, message)


class Tokens:
    """The tokens of one worker, each used for 30 s, so that neither side signs or verifies for every request."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._current = (-math.inf, "")

    def at(self, now_seconds: float) -> str:
        """A token valid for at least 30 s more by the coordinator's clock; a new one if that clock went back."""
        made_at, token = self._current
        if not 0 <= now_seconds - made_at < USED_SECONDS:
            token = self._identity.token(now_seconds)
            self._current = (now_seconds, token)
        return token


def public_key(key: Ed25519PrivateKey) -> str:
    """The public half: 32 raw bytes, base64url without padding."""
    return _text(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


def signature(key: Ed25519PrivateKey, message: bytes) -> str:
    """The key's signature of these bytes, base64url without padding."""
    return _text(key.sign(message))


def make_key(folder: Path) -> Ed25519PrivateKey:
    """The key of this data folder, created if there is none, so that an interrupted enrollment resumes."""
    return _load_or_make_key(folder / "identity" / _KEY_FILE)


def make_next_key(folder: Path) -> Ed25519PrivateKey:
    """The key that will replace this folder's, created if there is none, so that an interrupted rotation resumes."""
    return _load_or_make_key(folder / "identity" / _NEXT_KEY_FILE)


def adopt_next_key(folder: Path) -> None:
    """Replace the key with the next one. The old one is deleted."""
    move(folder / "identity" / _NEXT_KEY_FILE, folder / "identity" / _KEY_FILE)


def save_record(folder: Path, record: WorkerRecord) -> None:
    """Store the record of an enrollment."""
    write_file(folder / "identity" / _WORKER_FILE, record.model_dump_json(indent=2).encode(), mode=0o600)


def load_identity(folder: Path) -> Identity:
    """The worker of this data folder. Raises NotEnrolled, or ConfigurationError for a damaged or open key file."""
    place = folder / "identity"
    try:
        record = WorkerRecord.model_validate_json((place / _WORKER_FILE).read_bytes())
    except FileNotFoundError:
        raise NotEnrolled(f"{folder} contains no enrolled worker; run: worker-agent enroll") from None
    except ValidationError as error:
        raise ConfigurationError(f"{place / _WORKER_FILE} is damaged: {error}") from None
    return Identity(record, _load_key(place / _KEY_FILE))


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _load_or_make_key(path: Path) -> Ed25519PrivateKey:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_file(path, pem, mode=0o600)
    return _load_key(path)


def _load_key(path: Path) -> Ed25519PrivateKey:
    try:
        pem, mode = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigurationError(f"the worker's key cannot be read: {error}") from None
    if mode & 0o077:
        raise ConfigurationError(f"{path} can be read by others (mode {mode:o}); run: chmod 600 {path}")
    try:
        key = load_pem_private_key(pem, password=None)
    except ValueError:
        raise ConfigurationError(f"{path} is not a private key") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path} is not an Ed25519 key")
    return key
