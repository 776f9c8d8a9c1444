"""Canonical bytes of signed statements, digests of definitions, and ids of keys. Standard library only.

A worker signs a `Statement` for each update, and a proof of possession for each key that it registers. Worker and
coordinator build the same bytes from their own data, so the messages themselves are never sent. The digest of a
definition identifies what an organization has accepted.
"""

import hashlib
import json
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CONTEXT = "fedloom update 1"
"""Domain separation: the signature of another kind or version of message is never valid for a statement."""
ENROLLMENT_CONTEXT = "fedloom enrolment 1"
ROTATION_CONTEXT = "fedloom key rotation 1"
KEY_ID_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Statement:
    """The signed facts of one update. 0 < weight <= examples. `digest` is "sha256:" and 64 digits."""

    federation_id: str
    job_id: str
    round_kind: str
    round_number: int
    algorithm: str
    algorithm_revision: int
    digest: str
    weight: float
    examples: int

    def encode(self) -> bytes:
        """The bytes to sign: canonical JSON of all fields and the context."""
        return canonical_json(
            {
                "context": CONTEXT,
                "federation": self.federation_id,
                "job": self.job_id,
                "round": {"kind": self.round_kind, "number": self.round_number},
                "algorithm": {"name": self.algorithm, "revision": self.algorithm_revision},
                "update": self.digest,
                "weight": float(self.weight),
                "examples": self.examples,
            }
        )


def enrollment_message(token: str, name: str, public_key: str) -> bytes:
    """The bytes that a worker signs at enrollment to prove possession of its key.

    They contain the token as its SHA-256, so a leaked proof does not help to guess the token.
    """
    token_sha256 = hashlib.sha256(token.encode()).hexdigest()
    facts = {"token_sha256": token_sha256, "name": name, "public_key": public_key}
    return canonical_json({"context": ENROLLMENT_CONTEXT, **facts})


def rotation_message(worker_id: str, public_key: str) -> bytes:
    """The bytes that a worker signs with its next key to prove possession of it."""
    return canonical_json({"context": ROTATION_CONTEXT, "worker": worker_id, "public_key": public_key})


def canonical_json(value: Any) -> bytes:
    """JSON that is a function of the value alone: sorted keys, no spaces, UTF-8, shortest decimals of a float.

    Raises ValueError for NaN and infinity.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def definition_digest(definition: Mapping[str, Any]) -> str:
    """The digest that identifies `definition` in a consent: "sha256:" and 64 digits, of its canonical JSON.

    Raises ValueError for NaN and infinity.
    """
    return "sha256:" + hashlib.sha256(canonical_json(definition)).hexdigest()


def key_id(public_key: str) -> str:
    """Id of an Ed25519 public key (base64url of its 32 bytes): "ed25519:" and 128 bits of its SHA-256.

    Raises ValueError if it is not base64url.
    """
    raw = urlsafe_b64decode(public_key + "=" * (-len(public_key) % 4))
    return "ed25519:" + hashlib.sha256(raw).hexdigest()[:KEY_ID_DIGITS]
