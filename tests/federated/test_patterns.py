"""Patterns: matching, rejected syntax, and matching without backtracking."""

import re
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated import patterns
from federated.patterns import PatternInvalid, Patterns, by_module_name, first_fitting, valid_name, valid_pattern
from tests.support.bad_texts import PATTERNS

QUERY = "bert.encoder.layer.0.attention.self.query"
SMALL = st.lists(st.text("ab*", min_size=1, max_size=3), min_size=1, max_size=4).map(".".join)
NAMES = st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=5).map(".".join)


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("query", QUERY, True),
        ("query", "query", True),
        ("uery", QUERY, False),
        ("self.query", QUERY, True),
        ("encoder.query", QUERY, False),
        ("*", QUERY, True),
        ("*query", QUERY, True),
        ("q*y", QUERY, True),
        ("0.*.self.*", QUERY, True),
        ("0.*.query", QUERY, False),
        ("^*.query", QUERY, False),
        ("^" + QUERY + "$", QUERY, True),
        ("^encoder.layer.0.attention.self.query", QUERY, False),
        ("^query|value", "a.value", True),
        ("^query|value", "a.query", False),
        ("layer_*.x", "layer_12.x", True),
        ("layer_*.x", "layer_1.2.x", False),
        ("a*b*b", "ab", False),
        ("a*b*b", "abb", True),
        ("a.b.c.d", "b.c.d", False),
    ],
)
def test_a_pattern_fits_the_end_of_a_name_by_components(pattern: str, name: str, fits: bool) -> None:
    assert (Patterns((pattern,)).first(name) == 0) is fits


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("classifier.*", "classifier.dense.weight", True),
        ("*.pooler.*", "bert.pooler.dense.bias", True),
        ("*.pooler.*", "bert.encoder.layer.0.output.dense.weight", False),
        ("*.bias", "bert.pooler.dense.bias", True),
        ("*.bias", "bert.pooler.dense.weight", False),
        ("bert.encoder.layer.0.*", QUERY + ".weight", True),
        ("bert.encoder.layer.1.*", QUERY + ".weight", False),
        ("pooler", "bert.pooler.dense.bias", True),
        ("^pooler", "bert.pooler.dense.bias", False),
    ],
)
def test_a_tensor_is_chosen_by_its_name_or_a_module_above(pattern: str, name: str, fits: bool) -> None:
    assert (Patterns((pattern,)).first_over(name) == 0) is fits


@given(texts=st.lists(st.tuples(st.booleans(), SMALL), min_size=1, max_size=6), name=NAMES)
def test_it_finds_what_a_regular_expression_would(texts: list[tuple[bool, str]], name: str) -> None:
    written = ["^" * anchored + text for anchored, text in texts]
    forms = [("" if anchored else r"(.*\.)?") + re.escape(text).replace(r"\*", "[ab]*") for anchored, text in texts]
    fitting = {place for place, form in enumerate(forms) if re.fullmatch(form, name)}
    found = Patterns(written)
    assert found.all_of(name) == fitting
    assert found.first(name) == min(fitting, default=None)
    joined = Patterns(("|".join(written),))
    assert (joined.first(name) == 0) is bool(fitting)
    parts = name.split(".")
    above = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    assert found.all_over(name) == {place for one in above for place in found.all_of(one)}


@pytest.mark.parametrize("text", PATTERNS.values(), ids=list(PATTERNS))
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(PatternInvalid):
        valid_pattern(text)


@given(st.text(max_size=40))
def test_any_text_is_refused_or_matches_without_an_error(text: str) -> None:
    try:
        ready = Patterns((text,))
    except PatternInvalid:
        return
    assert set("*|^$") & set(text) or ready.first(text) == 0


@pytest.mark.parametrize("name", ["", ".", "a.", ".a", "a..b", "a b", "a\nb", "é", "a*", "(a|a)+b", "a" * 513, "a/b"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(PatternInvalid):
        valid_name(name)


@pytest.mark.parametrize(
    "texts",
    [
        ["a"] * (patterns.MAX_PATTERNS + 1),
        ["a" * 512] * (patterns.MAX_CHARACTERS // 512 + 1),
        [f"a{number}*" for number in range(patterns.MAX_PARTIAL + 1)],
    ],
)
def test_a_list_beyond_the_bounds_is_refused(texts: list[str]) -> None:
    with pytest.raises(PatternInvalid, match="at most"):
        Patterns(texts)


@pytest.mark.parametrize("components", [4, 8])
def test_the_steps_grow_with_the_components_of_a_name_and_not_with_what_they_could_mean(components: int) -> None:
    texts = ["*a" * 8 + "*" + "b" * number + ".*" * 100 for number in range(patterns.MAX_PARTIAL)]
    ready, name = Patterns(texts), ".".join(["a" * 60 + "b"] * components)
    assert _calls(lambda: ready.first(name)) <= components * patterns.MAX_PARTIAL * 20 + 10


def _calls(action: Callable[[], object]) -> int:
    """How many calls, of Python's own functions too, an action makes."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
    return calls


class TestValues:
    def test_the_first_pattern_in_their_order_gives_the_value(self) -> None:
        values = {"self.query": 1, "query": 2, "*": 3}
        assert [first_fitting(values, name, 9) for name in ("a.self.query", "a.query", "value")] == [1, 2, 3]
        assert first_fitting({"query": 2, "self.query": 1}, "a.self.query", 9) == 2
        assert first_fitting({}, "a", 9) == 9

    def test_whole_names_take_the_place_of_patterns_the_longest_first(self) -> None:
        values = {"layer.*.query": 1, "query": 2}
        names = ["query", "x.layer.1.query", "x.layer.0.query", "y.query", "value"]
        assert list(by_module_name(values, names).items()) == [
            ("x.layer.0.query", 1),
            ("x.layer.1.query", 1),
            ("y.query", 2),
            ("query", 2),
        ]
