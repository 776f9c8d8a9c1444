"""Sanitizer: untrusted text is printed as one line without control characters."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated.printable import MAX_CHARACTERS, printable, printable_event, printable_lines
from tests.support.bad_texts import SHOWN


@given(st.text())
def test_any_text_is_one_bounded_line_without_control_or_format_characters(text: str) -> None:
    shown = printable(text, 20)
    assert len(shown) == min(len(text), 20)
    assert all(unicodedata.category(character)[0] != "C" for character in shown)
    assert len(shown.splitlines()) <= 1


@pytest.mark.parametrize("text", SHOWN.values(), ids=list(SHOWN))
def test_hostile_texts_are_inert(text: str) -> None:
    assert printable(text).isprintable()
    assert len(printable(text)) <= MAX_CHARACTERS


def test_what_people_write_stays() -> None:
    told = "Klinik Zürich – 東京 приём नमस्ते 🙂: 87.9 % [a/b]"
    assert printable(told) == told


def test_every_value_of_a_log_line_is_made_so_and_tracebacks_keep_their_lines() -> None:
    event = {"event": "x", "reason": "a\x1b[31m\nb", "metrics": {"lo\u202ess": 0.5}, "count": 3, "well": None}
    shown = printable_event(None, "info", event | {"exception": "one\ntwo\x1b]0;x\x07"})
    assert shown == {
        "event": "x",
        "reason": "a\ufffd[31m b",
        "metrics": "{'lo\\u202ess': 0.5}",
        "count": 3,
        "well": None,
        "exception": "  one\n  two\ufffd]0;x\ufffd",
    }
    assert printable_lines("a\nb\rc") == "  a\n  b c"
