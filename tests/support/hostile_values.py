"""Hostile values: wrong texts, numbers and names, and the places of a value that can hold them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

Place = tuple[Any, ...]
"""The keys and indices that lead to a place in a JSON value."""

DIGITS = "9" * 5000
VALUES = (
    '"a\\u0000b"', '"\\ud800"', '"\\udc00\\ud800"', '""', f'"{"x" * 70_000}"', '"\\u202e\\uffff\\ud83d\\ude00"',
    '"../../../etc/passwd"', "null", "true", "0", "-1", str(2**31), str(2**63), str(2**64), "9" * 400, DIGITS,
    "1e999", "-1e999", "NaN", "-Infinity", "5e-324", "1e308", "0.1", "[]", "{}", "[" * 90 + "]" * 90,
    '{"\\ud800": "\\u0000"}', '{"": {"\\u0000": 1e999}}', '[null, "\\ud800", 1e999, ' + "9" * 400 + "]",
)  # fmt: skip
"""JSON texts; not all of them are JSON by the letter, and Python reads them all."""
TEXTS = (
    "", "%00", "a%00b", "%ff%fe", "%ed%a0%80", "%F0%9F%98%80", "%2e%2e%2f", "-1", "0", "1e999", "nan", str(2**31),
    str(2**63), str(2**64), "9" * 400, DIGITS, "x" * 5000, "%C2%B2", "%D9%A3", "+1", " 1", "1_0", "%0d%0aX: y",
)  # fmt: skip
"""Percent-encoded texts for paths and queries."""
HEADERS = (
    b"", b"\xff\xfe", b"\xed\xa0\x80", b'"', b'W/"', b",", b'*, "*"', b"bytes=-", b"bytes=0-" + DIGITS.encode(),
    b"bytes=" + DIGITS.encode() + b"-", b"bytes=-" + DIGITS.encode(), b"bytes=5-2", b"bytes=\xb2-", b"-1", b"1e999",
    DIGITS.encode(), str(2**63).encode(), b"x" * 9000, b"a\tb", b'"\xe4"', b"=?utf-8?q?=00?=",
)  # fmt: skip
TOKENS = (
    b"Bearer", b"Basic \xff", b"Bearer \xff\xfe", b"Bearer flk_", b"Bearer flk__", b"Bearer flk_\xff_x",
    b"Bearer a.b.c", b"Bearer ..", b"Bearer e30.e30.", b"Bearer " + b"W1tb" * 4000 + b".e30.x",
    b"Bearer bnVsbA.e30.x", b"Bearer " + b"x" * 9000,
)  # fmt: skip
CLAIMS = ("iss", "aud", "iat", "exp", "nbf", "jti", "sub", "kid")
CLAIM_VALUES: tuple[Any, ...] = (
    0, -1, 2**70, 1e300, float("inf"), float("nan"), "1", "x", "\x00", [], {}, True, [["x"]], "",
)  # fmt: skip


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Every place in a JSON value, the whole first."""
    yield at
    for key, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from places(inner, (*at, key))


def with_text(value: Any, at: Place, text: str) -> str:
    """The JSON text of a value with this text at one of its places."""
    return with_texts(value, {at: text})


def with_texts(value: Any, texts: Mapping[Place, str]) -> str:
    """The JSON text of a value with a text at each of these places; one within another is lost."""
    marks = {f"put-the-hostile-value-here-{number}-": at for number, at in enumerate(texts)}
    for mark, at in sorted(marks.items(), key=lambda item: -len(item[1])):
        value = _marked(value, at, mark)
    whole = json.dumps(value)
    for mark, at in marks.items():
        whole = whole.replace(f'"{mark}"', texts[at])
    return whole


def _marked(value: Any, at: Place, mark: str) -> Any:
    if not at:
        return mark
    if isinstance(value, list):
        return [_marked(inner, at[1:], mark) if index == at[0] else inner for index, inner in enumerate(value)]
    return {**value, at[0]: _marked(value.get(at[0]), at[1:], mark)}
