"""Hostile keys, tokens and signatures: each is rejected with the right error and has no other effect.

FEDLOOM_FUZZ_EXAMPLES is the number of random examples in each test.
"""

import json
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.auth.credentials import is_signature_valid, read_public_key
from coordinator.auth.principals import authenticate
from coordinator.db.sessions import autocommit_reads, utcnow, writing
from coordinator.errors import Unauthenticated
from coordinator.models import Organization, Worker
from federated.signed_statement import Statement, key_id
from tests.support.service import Identity

EXAMPLES = int(os.environ.get("FEDLOOM_FUZZ_EXAMPLES", "0")) or 120
FUZZED = settings(
    max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**63, 2**70, 10**4000, float("inf"), float("nan")])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | st.sampled_from(["\ud800", "\x00", "fedloom"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
CLAIMS = st.dictionaries(st.sampled_from(["iss", "aud", "iat", "exp", "nbf", "jti", "sub", "x"]), VALUES, max_size=4)
HEADERS = st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jku", "x"]), VALUES, max_size=3)
TEXTS = st.text(max_size=40) | st.text(alphabet="flk_e.-abc0=+/%\ud800\x00é", max_size=40)
STATEMENT = Statement("fed_1", "job_1", "train", 1, "fedavg", 1, "sha256:" + "0" * 64, 2.5, 4)


@pytest.fixture
def signer(data_folder: Path) -> Identity:
    """A worker's key pair, known to the coordinator."""
    identity = Identity("wkr_1")
    with writing() as session:
        session.add(Organization(id="org_1", name="one", created_at=utcnow()))
        session.flush()
        session.add(
            Worker(
                id="wkr_1", organization_id="org_1", name="one", public_key=identity.public_key,
                capabilities={}, created_at=utcnow(),
            )
        )  # fmt: skip
    return identity


def refused(token: str) -> None:
    with autocommit_reads() as connection:
        (reason,) = authenticate(connection, [token])
    assert isinstance(reason, Unauthenticated)
    assert reason.detail.encode()


def encoded(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


def decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def signed(identity: Identity, header: Any, claims: Any) -> str:
    message = ".".join(encoded(json.dumps(part).encode()) for part in (header, claims))
    return f"{message}.{identity.sign(message.encode())}"


class TestTokens:
    @FUZZED
    @given(text=TEXTS)
    def test_texts_are_no_credentials(self, signer: Identity, text: str) -> None:
        refused(text)
        refused("flk_" + text)
        refused(f"{text}.{text}.{text}")

    @FUZZED
    @given(parts=st.lists(st.binary(max_size=30), min_size=2, max_size=4))
    def test_bytes_are_no_token(self, signer: Identity, parts: list[bytes]) -> None:
        refused(".".join(map(encoded, parts)))

    @FUZZED
    @given(header=HEADERS, claims=CLAIMS)
    def test_what_a_worker_signs_holds_only_as_it_should(
        self, signer: Identity, header: dict[str, Any], claims: dict[str, Any]
    ) -> None:
        """Its signature is good; each claim is what it should be or what it should not."""
        now = int(utcnow().timestamp())
        good = {"iss": "wkr_1", "aud": "fedloom", "iat": now, "exp": now + 60, "jti": "1"}
        token = signed(signer, {"alg": "EdDSA", "kid": "wkr_1", **header}, {**good, **claims})
        with autocommit_reads() as connection:
            (principal,) = authenticate(connection, [token])
        if isinstance(principal, Unauthenticated):
            return
        assert principal.id == "wkr_1"
        told = {**good, **claims}
        assert float(told["exp"]) - float(told["iat"]) <= 300
        assert told["iss"] == "wkr_1"

    @pytest.mark.parametrize("depth", [500, 20_000])
    def test_nesting_without_end_is_no_token(self, signer: Identity, depth: int) -> None:
        nested = b"[" * depth + b"]" * depth
        for header in (nested, b'{"kid":' + nested + b"}", b'{"alg":"EdDSA","kid":"wkr_1","x":' + nested + b"}"):
            message = f"{encoded(header)}.{encoded(nested)}"
            refused(f"{message}.{signer.sign(message.encode())}")

    @FUZZED
    @given(data=st.data())
    def test_one_changed_character_is_refused(self, signer: Identity, data: st.DataObject) -> None:
        token = signer.token()
        at = data.draw(st.integers(0, len(token) - 1))
        other = data.draw(st.sampled_from("abcXYZ019-_.=é\x00").filter(lambda found: found != token[at]))
        changed = token[:at] + other + token[at + 1 :]
        message, _, signature = token.rpartition(".")
        if changed.startswith(message + ".") and _same_bytes(changed.rpartition(".")[2], signature):
            return  # base64 has bits that say nothing
        refused(changed)


def _same_bytes(one: str, other: str) -> bool:
    try:
        return decoded(one) == decoded(other)
    except ValueError:
        return False


class TestUpdateSignatures:
    @FUZZED
    @given(key=TEXTS | st.binary(max_size=31).map(encoded), signature=TEXTS | st.binary(max_size=70).map(encoded))
    def test_anything_else_does_not_hold(self, key: str, signature: str) -> None:
        assert not is_signature_valid(key, signature, STATEMENT.encode())
        identity = Identity()
        assert not is_signature_valid(identity.public_key, signature, STATEMENT.encode())
        assert not is_signature_valid(key, identity.sign(STATEMENT.encode()), STATEMENT.encode())

    @FUZZED
    @given(data=st.data())
    def test_one_changed_bit_does_not_hold(self, data: st.DataObject) -> None:
        identity = Identity()
        message = STATEMENT.encode()
        signature = identity.sign(message)
        assert is_signature_valid(identity.public_key, signature, message)
        raw = bytearray(decoded(signature))
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        assert not is_signature_valid(identity.public_key, encoded(bytes(raw)), message)
        other = bytearray(message)
        other[data.draw(st.integers(0, len(other) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        assert not is_signature_valid(identity.public_key, signature, bytes(other))

    @FUZZED
    @given(text=TEXTS | st.binary(max_size=40).map(encoded))
    def test_a_public_key_is_one_or_a_value_error(self, text: str) -> None:
        for reader in (read_public_key, key_id):
            try:
                found = reader(text)
            except ValueError:
                continue
            assert isinstance(found, Ed25519PublicKey | str)
