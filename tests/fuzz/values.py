"""JSON values that nobody expects, and values with one of their places changed for such a one."""

import json
from typing import Any

from hypothesis import strategies as st

from tests.support.bad_texts import PATTERNS, SHOWN, TEMPLATES
from tests.support.hostile_values import VALUES, Place, places, with_texts

FORMATS = (
    "{text.__class__}", "{0}", "{text!r:>999999999}", "{text:{label}}", "%s%n", "${jndi:x}", "(a+)+$", "(a|a)*b" * 9,
    "../..", "/etc/passwd", "'; --", "\x00", "\u202e", *TEMPLATES.values(), *PATTERNS.values(), *SHOWN.values(),
)  # fmt: skip
TEXTS = st.text(max_size=40) | st.sampled_from(FORMATS)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
JSON_TEXTS = st.sampled_from(VALUES) | ANYTHING.map(json.dumps)
"""Values as JSON texts; some are JSON to Python alone."""


NUMBERS = st.integers() | st.sampled_from([0, 1, -1, 2**31, 2**53, 2**63, 2**64, 10**30])
ALIKE = st.sampled_from([True, True, True, False])
FRACTIONS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([5e-324, 1e308, -1e308, 0.0])


@st.composite
def changed(
    draw: st.DrawFn, value: Any, most: int = 1, but: frozenset[Place] = frozenset(), *, alike: bool = False
) -> str:
    """The JSON text of the value with others at one to so many of its places; none of `but` is among them.

    `alike`: most are a number for a number and a text for a text, so that whoever reads them goes on.
    """
    there = [at for at in places(value) if at not in but]
    leaves = [at for at in there if not isinstance(_at(value, at), list | dict)]
    texts: dict[Place, str] = {}
    for _ in range(draw(st.integers(1, most))):
        if alike and draw(ALIKE):
            at = draw(st.sampled_from(leaves))
            texts[at] = draw(_alike(_at(value, at)))
        else:
            texts[draw(st.sampled_from(there))] = draw(JSON_TEXTS)
    return with_texts(value, texts)


def _at(value: Any, at: Place) -> Any:
    for key in at:
        value = value[key]
    return value


def _alike(value: Any) -> st.SearchStrategy[str]:
    """JSON texts of the same type."""
    match value:
        case bool():
            return st.booleans().map(json.dumps)
        case str():
            return TEXTS.map(json.dumps)
        case int():
            return NUMBERS.map(json.dumps)
        case float():
            return (FRACTIONS | NUMBERS).map(json.dumps)
    return JSON_TEXTS
