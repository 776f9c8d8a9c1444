"""Signed statements, byte for byte: any change of their form would invalidate all stored signatures."""

import dataclasses
from typing import Any

import pytest

from federated.signed_statement import (
    Statement,
    canonical_json,
    definition_digest,
    enrollment_message,
    key_id,
    rotation_message,
)

STATEMENT = Statement(
    federation_id="fed_1",
    job_id="job_1",
    round_kind="train",
    round_number=3,
    algorithm="fedavg",
    algorithm_revision=1,
    digest="sha256:" + "0" * 64,
    weight=10,
    examples=12,
)
GOLDEN = (
    '{"algorithm":{"name":"fedavg","revision":1},"context":"fedloom update 1","examples":12,"federation":"fed_1",'
    '"job":"job_1","round":{"kind":"train","number":3},"update":"sha256:' + "0" * 64 + '","weight":10.0}'
)
OTHERS: dict[str, Any] = {
    "federation_id": "fed_2",
    "job_id": "job_2",
    "round_kind": "prepare",
    "round_number": 4,
    "algorithm": "flexlora",
    "algorithm_revision": 2,
    "digest": "sha256:" + "1" * 64,
    "weight": 10.000000000000002,
    "examples": 13,
}


def test_the_bytes_of_a_statement_are_these() -> None:
    assert STATEMENT.encode() == GOLDEN.encode()


def test_every_field_is_signed() -> None:
    assert list(OTHERS) == [field.name for field in dataclasses.fields(Statement)]
    changed = {dataclasses.replace(STATEMENT, **{name: value}).encode() for name, value in OTHERS.items()}
    assert len(changed | {STATEMENT.encode()}) == len(OTHERS) + 1


def test_the_bytes_that_prove_a_key_are_these() -> None:
    token_sha256 = "3c469e9d6c5875d37a43f353d4f88e61fcf812c66eee3457465a40b0da4153e0"
    said = f'"context":"fedloom enrolment 1","name":"gpu-1","public_key":"k","token_sha256":"{token_sha256}"'
    assert enrollment_message("token", "gpu-1", "k") == f"{{{said}}}".encode()
    assert rotation_message("wkr_1", "k") == (
        b'{"context":"fedloom key rotation 1","public_key":"k","worker":"wkr_1"}'
    )


def test_the_order_of_keys_and_the_alphabet_do_not_matter() -> None:
    assert (
        canonical_json({"b": "é", "a": 0.1}) == canonical_json({"a": 0.1, "b": "é"}) == '{"a":0.1,"b":"é"}'.encode()
    )


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_that_json_does_not_know_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dataclasses.replace(STATEMENT, weight=weight).encode()


def test_a_key_is_named_by_its_bytes() -> None:
    assert key_id("A" * 43) == key_id("A" * 43 + "=") == "ed25519:66687aadf862bd776c8fc18b8e9f8e20"


class TestDefinitionDigest:
    def test_it_is_that_of_the_canonical_json(self) -> None:
        empty = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        assert definition_digest({}) == empty
        assert definition_digest({"b": [1], "a": None}) == definition_digest({"a": None, "b": [1]}) != empty

    @pytest.mark.parametrize(
        "other", [{"a": 1.0}, {"a": "1"}, {"a": [1]}, {"a": 1, "b": None}, {"b": 1}, {"a": True}]
    )
    def test_what_is_not_the_same_has_another(self, other: dict[str, Any]) -> None:
        assert definition_digest(other) != definition_digest({"a": 1})

    def test_a_number_that_json_does_not_know_has_none(self) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            definition_digest({"a": float("nan")})
