"""Canonical bytes of what is signed or agreed to, and how keys are named. Standard library alone.

Of each update a worker signs a `Statement`, and with each key that it registers a message that proves its possession:
worker and coordinator build the same bytes from what each of them knows, so the message itself never travels. What
somebody agrees to is named by its digest.
"""

import hashlib
import json
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CONTEXT = "fedloom update 1"
"""First word of every statement: no signature of something else, or of a later form, can pass for one."""
ENROLLMENT_CONTEXT = "fedloom enrolment 1"
ROTATION_CONTEXT = "fedloom key rotation 1"
KEY_ID_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Statement:
    """One update as its worker vouches for it. 0 < weight <= examples; `digest` is "sha256:" and 64 digits."""

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
        """The bytes that are signed: canonical JSON of all fields, and the context."""
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
    """The bytes that a worker's key signs to prove at enrolment that its holder sends it.

    The token stands in them as its SHA-256, so a proof that is seen somewhere helps nobody to guess it.
    """
    token_sha256 = hashlib.sha256(token.encode()).hexdigest()
    facts = {"token_sha256": token_sha256, "name": name, "public_key": public_key}
    return canonical_json({"context": ENROLLMENT_CONTEXT, **facts})


def rotation_message(worker_id: str, public_key: str) -> bytes:
    """The bytes that a worker's next key signs to prove that the worker holds it."""
    return canonical_json({"context": ROTATION_CONTEXT, "worker": worker_id, "public_key": public_key})


def canonical_json(value: Any) -> bytes:
    """One value, one text: keys sorted, no spaces, UTF-8, a float as the shortest decimals that give it back.

    Raises ValueError for NaN and infinity.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def definition_digest(definition: Mapping[str, Any]) -> str:
    """The digest under which somebody agrees to all of `definition`: "sha256:" and 64 digits, of its canonical JSON.

    Raises ValueError for NaN and infinity.
    """
    return "sha256:" + hashlib.sha256(canonical_json(definition)).hexdigest()


def key_id(public_key: str) -> str:
    """Name of an Ed25519 public key (base64url of its 32 bytes): "ed25519:" and 128 bits of its SHA-256.

    Raises ValueError for what is not base64url.
    """
    raw = urlsafe_b64decode(public_key + "=" * (-len(public_key) % 4))
    return "ed25519:" + hashlib.sha256(raw).hexdigest()[:KEY_ID_DIGITS]
