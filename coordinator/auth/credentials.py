"""Credentials: secrets that are shown once and stored as hashes, and Ed25519 public keys with their signatures."""

import hashlib
import hmac
import secrets
from base64 import urlsafe_b64decode
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from nacl.bindings import crypto_core_ed25519_is_valid_point

KEY_PREFIX = "flk_"
ENROLLMENT_PREFIX = "fle_"
PUBLIC_KEY_BYTES = 32


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

    Raises ValueError, also for a point outside the prime-order group: under one of small order, one signature would
    be valid for many messages.
    """
    raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if len(raw) != PUBLIC_KEY_BYTES:
        raise ValueError(f"an Ed25519 public key has {PUBLIC_KEY_BYTES} bytes, this one {len(raw)}")
    if not crypto_core_ed25519_is_valid_point(raw):
        raise ValueError("this Ed25519 key is not a point of the prime-order group, but of small order or invalid")
    return Ed25519PublicKey.from_public_bytes(raw)


def is_signature_valid(public_key: str, signature: str, message: bytes) -> bool:
    """Whether the Ed25519 key signed these bytes; False also for a malformed key or signature."""
    try:
        read_public_key(public_key).verify(urlsafe_b64decode(signature + "=" * (-len(signature) % 4)), message)
    except (InvalidSignature, ValueError):
        return False
    return True
