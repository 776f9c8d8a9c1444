"""Credentials: secrets that are shown once and stored as hashes, and Ed25519 public keys with their signatures."""

import hashlib
import hmac
import secrets
from base64 import urlsafe_b64decode
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

KEY_PREFIX = "flk_"
ENROLLMENT_PREFIX = "fle_"
PUBLIC_KEY_BYTES = 32
_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P)


def new_secret(prefix: str, id: str) -> tuple[str, str]:  # noqa: A002 - called id everywhere else
    """A text to show once, `<prefix><id>_<secret>`, and the hash of its secret for the database."""
    secret = secrets.token_hex(32)
    return f"{prefix}{id}_{secret}", hash_secret(secret)


def split_secret(prefix: str, text: str) -> tuple[str, str] | None:
    """Id and secret in a text of `new_secret`, or None for any other text."""
    if not text.startswith(prefix):
        return None
    identity, _, secret = text.removeprefix(prefix).rpartition("_")
    return (identity, secret) if identity and secret else None


def hash_secret(secret: str) -> str:
    """SHA-256, hexadecimal. The secrets are 256 random bits, so a slow hash would add no protection."""
    return hashlib.sha256(secret.encode()).hexdigest()


def secret_matches(secret: str, secret_sha256: str) -> bool:
    """Whether the secret has this hash, compared in constant time."""
    return hmac.compare_digest(hash_secret(secret), secret_sha256)


@lru_cache(maxsize=10_000)
def read_public_key(text: str) -> Ed25519PublicKey:
    """The key from base64url of its 32 raw bytes. Cached, since its worker's next token needs it again.

    Raises ValueError.
    """
    raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if len(raw) != PUBLIC_KEY_BYTES:
        raise ValueError(f"an Ed25519 public key has {PUBLIC_KEY_BYTES} bytes, this one {len(raw)}")
    if _has_small_order(raw):
        raise ValueError("this Ed25519 key is of small order: one signature would be valid for many messages")
    return Ed25519PublicKey.from_public_bytes(raw)


def _has_small_order(raw: bytes) -> bool:
    """Whether eight times the point is zero: y is 0, 1 or -1, or d y^4 + 2 y^2 = 1 (RFC 8032, 5.1: p and d)."""
    y = (int.from_bytes(raw, "little") & (1 << 255) - 1) % _P
    return y in (0, 1, _P - 1) or (_D * y**4 + 2 * y**2 - 1) % _P == 0


def is_signature_valid(public_key: str, signature: str, message: bytes) -> bool:
    """Whether the Ed25519 key signed these bytes; False also for a malformed key or signature."""
    try:
        read_public_key(public_key).verify(urlsafe_b64decode(signature + "=" * (-len(signature) % 4)), message)
    except (InvalidSignature, ValueError):
        return False
    return True
