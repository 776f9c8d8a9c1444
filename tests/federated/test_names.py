"""Display names: one normal form, and no invisible characters."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from federated.names import MAX_NAME, Name, valid_name
from federated.printable import printable
from tests.support.bad_names import FORBIDDEN, PRINTABLE, SHOWN

NAME = TypeAdapter(Name)


@given(PRINTABLE)
def test_any_printable_text_is_kept_in_its_normal_form(text: str) -> None:
    name = NAME.validate_python(text)
    assert name == unicodedata.normalize("NFC", text)
    assert NAME.validate_python(name) == printable(name) == name


@given(PRINTABLE)
def test_all_forms_of_a_text_that_look_alike_are_one_name(text: str) -> None:
    assert valid_name(unicodedata.normalize("NFD", text)) == valid_name(text)


@given(PRINTABLE.map(valid_name), FORBIDDEN, st.integers(0, 100))
def test_a_character_that_cannot_be_seen_is_refused_wherever_it_stands(text: str, hidden: str, place: int) -> None:
    with pytest.raises(ValidationError, match=r"has the character U\+[0-9A-F]{4,6}, which is neither visible"):
        NAME.validate_python(text[:place] + hidden + text[place:100])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        (" ", "begins or ends with a space"),
        ("   ", "begins or ends with a space"),
        (" a", "begins or ends with a space"),
        ("a ", "begins or ends with a space"),
        ("a" * 129, "is longer than 128 characters"),
        ("\u0958" * 65, "is longer than 128 characters"),
        ("a" * 10_000_000, "is longer than 128 characters"),
    ],
    ids=["empty", "space", "spaces", "leading", "trailing", "long", "long in its normal form", "huge"],
)
def test_a_text_that_is_no_name_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        valid_name(text)


def test_the_length_is_that_of_the_normal_form() -> None:
    assert valid_name("u\u0308" * MAX_NAME) == "ü" * MAX_NAME


@pytest.mark.parametrize("name", SHOWN)
def test_names_of_all_the_world_stay(name: str) -> None:
    assert valid_name(name) == name
