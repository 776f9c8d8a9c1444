"""Patterns of dotted names, with which a user selects modules or tensors of a model.

A pattern has one or more alternatives separated by `|`. An alternative is a list of components separated by dots, of
letters, digits, `_` and `-`. It matches the end of a name, component by component, and with a leading `^` the whole
name. A trailing `$` has no effect. `*` matches any part of one component and never a dot.

Names and patterns are untrusted, so matching does not backtrack. It simulates a bit-parallel automaton with one bit
for each component of each alternative.
"""

import string
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field

MAX_PATTERN = 512
MAX_PATTERNS = 1024
MAX_NAME = 512
# Limits of all patterns of one field together. They bound the cost of matching one component of a name.
MAX_CHARACTERS = 65_536
MAX_PARTIAL = 32

_COMPONENT = frozenset(string.ascii_letters + string.digits + "_-")
_PATTERN = _COMPONENT | {"*"}
_Value = TypeVar("_Value")
_Texts = TypeVar("_Texts", bound=Iterable[str])


class PatternInvalid(ValueError):
    """An invalid pattern, or patterns that exceed the limits."""


def valid_pattern(text: str) -> str:
    """Return the text unchanged. Raises PatternInvalid unless it is a pattern."""
    if len(text) > MAX_PATTERN:
        raise PatternInvalid(f"a pattern has at most {MAX_PATTERN} characters, this one has {len(text)}")
    for alternative in text.split("|"):
        for component in _components(alternative)[1]:
            if not component or not _PATTERN.issuperset(component):
                raise PatternInvalid(
                    f"{text!r} is not a pattern of module names: use components of letters, digits, _ and -, "
                    "dots between them, * within a component, | between alternatives, ^ before one; "
                    "regular expressions are not supported"
                )
    return text


def valid_name(name: str) -> str:
    """Return the name unchanged. Raises PatternInvalid unless it is a dotted name without wildcards."""
    if len(name) > MAX_NAME:
        raise PatternInvalid(f"a name has at most {MAX_NAME} characters, this one has {len(name)}")
    if not all(part and _COMPONENT.issuperset(part) for part in name.split(".")):
        raise PatternInvalid(f"{name!r} is not a dotted name of letters, digits, _ and -")
    return name


def valid_patterns(texts: _Texts) -> _Texts:
    """Return the patterns (a list or the keys of a mapping) unchanged. Raises PatternInvalid beyond the limits."""
    compile_patterns(tuple(texts))
    return texts


def is_name(text: str) -> bool:
    """Whether a pattern is a plain name, which means the same to PEFT."""
    return not set("*|^$") & set(text)


PatternText = Annotated[
    str,
    AfterValidator(valid_pattern),
    Field(
        examples=["query"],
        description="the end of a module's name; `*` within one component, `^` before a full name",
        json_schema_extra={"maxLength": MAX_PATTERN},
    ),
]
PatternList = Annotated[
    tuple[PatternText, ...], Field(max_length=MAX_PATTERNS, fail_fast=True), AfterValidator(valid_patterns)
]
DottedName = Annotated[str, AfterValidator(valid_name), Field(json_schema_extra={"maxLength": MAX_NAME})]


class Patterns:
    """A compiled sequence of patterns. Raises PatternInvalid."""

    def __init__(self, texts: Sequence[str]) -> None:
        _check_bounds(texts)
        self._literals: dict[str, int] = {}
        self._partial: dict[str, int] = {}
        self._any = self._firsts = self._anchors = self._ends = 0
        self._begins: list[int] = []
        place = 0
        for text in texts:
            self._begins.append(place)
            for alternative in valid_pattern(text).split("|"):
                place = self._add(alternative, place)
        if len(self._partial) > MAX_PARTIAL:
            excess = f"not {len(self._partial)}"
            raise PatternInvalid(
                f"at most {MAX_PARTIAL} different components have a * beside other characters, {excess}"
            )

    def first(self, name: str) -> int | None:
        """Index of the first pattern that matches a name."""
        return self._lowest(self._walk(name)[0])

    def all_of(self, name: str) -> set[int]:
        """Indices of all patterns that match a name."""
        return self._owners(self._walk(name)[0])

    def first_over(self, name: str) -> int | None:
        """Index of the first pattern that matches a name or any module above it."""
        return self._lowest(self._walk(name)[1])

    def all_over(self, name: str) -> set[int]:
        """Indices of all patterns that match a name or any module above it."""
        return self._owners(self._walk(name)[1])

    def _add(self, alternative: str, place: int) -> int:
        is_whole, components = _components(alternative)
        self._firsts |= 1 << place
        if is_whole:
            self._anchors |= 1 << place
        for component in components:
            bit = 1 << place
            if component == "*":
                self._any |= bit
            else:
                kind = self._partial if "*" in component else self._literals
                kind[component] = kind.get(component, 0) | bit
            place += 1
        self._ends |= 1 << (place - 1)
        return place

    def _walk(self, name: str) -> tuple[int, int]:
        """The ends reached at the last component of a name, and at any of its components."""
        active = ends = 0
        for depth, component in enumerate(name.split(".")):
            starts = self._firsts if depth == 0 else self._firsts & ~self._anchors
            active = (((active << 1) & ~self._firsts) | starts) & self._fitting(component)
            ends |= active & self._ends
        return active & self._ends, ends

    def _fitting(self, component: str) -> int:
        fitting = self._any | self._literals.get(component, 0)
        for pattern, bits in self._partial.items():
            if _fits(pattern, component):
                fitting |= bits
        return fitting

    def _lowest(self, ends: int) -> int | None:
        return self._owner(ends & -ends) if ends else None

    def _owners(self, ends: int) -> set[int]:
        owners = set()
        while ends:
            owners.add(self._owner(ends & -ends))
            ends &= ends - 1
        return owners

    def _owner(self, bit: int) -> int:
        return bisect_right(self._begins, bit.bit_length() - 1) - 1


@lru_cache(maxsize=16)
def compile_patterns(texts: tuple[str, ...]) -> Patterns:
    """Compile patterns, with a cache. Raises PatternInvalid."""
    return Patterns(texts)


def first_fitting(values: Mapping[str, _Value], name: str, otherwise: _Value) -> _Value:
    """The value of the first pattern that matches a name, or `otherwise`."""
    index = compile_patterns(tuple(values)).first(name)
    return otherwise if index is None else list(values.values())[index]


def by_module_name(values: Mapping[str, _Value], names: Iterable[str]) -> dict[str, _Value]:
    """The same values by full names instead of patterns, longest name first.

    PEFT uses the first key that is the end of a name, so a key must follow all longer keys that end with it.
    """
    patterns, by_index = compile_patterns(tuple(values)), list(values.values())
    indices = {name: patterns.first(name) for name in sorted(names, key=lambda name: (-len(name), name))}
    return {name: by_index[index] for name, index in indices.items() if index is not None}


def unfitting(texts: Sequence[str], matches: Iterable[set[int]]) -> list[str]:
    """The patterns whose index is in none of `matches`."""
    missing = set(range(len(texts))).difference(*matches)
    return [texts[index] for index in sorted(missing)]


def _check_bounds(texts: Sequence[str]) -> None:
    if len(texts) > MAX_PATTERNS:
        raise PatternInvalid(f"at most {MAX_PATTERNS} patterns are allowed, not {len(texts)}")
    characters = sum(map(len, texts))
    if characters > MAX_CHARACTERS:
        raise PatternInvalid(f"all patterns together have at most {MAX_CHARACTERS} characters, not {characters}")


def _components(alternative: str) -> tuple[bool, list[str]]:
    return alternative.startswith("^"), alternative.removeprefix("^").removesuffix("$").split(".")


def _fits(pattern: str, component: str) -> bool:
    """Whether a pattern with `*` matches a component. Pieces between two `*` are searched from the left."""
    first, *middle, last = pattern.split("*")
    if len(component) < len(first) + len(last) or not (component.startswith(first) and component.endswith(last)):
        return False
    at, end = len(first), len(component) - len(last)
    for piece in middle:
        start = component.find(piece, at, end)
        if start < 0:
            return False
        at = start + len(piece)
    return True
