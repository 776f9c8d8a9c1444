"""Masking of secrets in log events: by name and by form, at any depth, and nothing else."""

import pytest

from federated.logs import redact_secrets

KEY = "flk_" + "0123456789abcdefghij"
JWT = "eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJ3b3JrZXIifQ.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        (f"it was {KEY}.", "it was …."),
        (f"Bearer {JWT}", "Bearer …"),
        ({"key": 7, "inner": [KEY, (JWT, 1)]}, {"key": "…", "inner": ["…", ("…", 1)]}),
        (("plain", 2.5, None), ("plain", 2.5, None)),
        ("flk_short", "flk_short"),
        (True, True),
    ],
)
def test_a_value_is_masked_by_its_form(value: object, masked: object) -> None:
    assert redact_secrets(None, "info", {"event": "tried", "value": value}) == {"event": "tried", "value": masked}


@pytest.mark.parametrize("name", ["authorization", "key", "token", "secret", "password"])
def test_a_value_is_masked_by_its_name(name: str) -> None:
    assert redact_secrets(None, "info", {name: 12, "names": name}) == {name: "…", "names": name}
