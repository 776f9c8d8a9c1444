"""What proves who somebody is: secrets that are handed out once, and public keys with what was signed under them."""

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


@lru_cache(maxsize=10_000)
def read_public_key(text: str) -> Ed25519PublicKey:
    """The key from base64url of its 32 raw bytes; kept, for each is needed again with its worker's next token.

    Raises ValueError.
    """
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
