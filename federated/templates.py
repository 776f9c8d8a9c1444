"""User templates: text with `{column}` placeholders for a row's values and no other syntax.

`{{` and `}}` are literal braces. A column's name begins with `_` or a letter of any alphabet and continues with
letters, digits, `_`, `-` and inner spaces. Values are inserted unchanged and never parsed as templates.
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

MAX_NAME = 128
MAX_FIELDS = 64
_INNER = frozenset("_- ")


class TemplateInvalid(ValueError):
    """An invalid template. The message says what is wrong and at which character."""


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template. `pieces`: literal text and the column whose value follows it, None after the last."""

    pieces: tuple[tuple[str, str | None], ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns of the placeholders in order, with repetitions."""
        return tuple(name for _, name in self.pieces if name is not None)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns, each once."""
        return tuple(dict.fromkeys(self.fields))

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with a row's values. Raises KeyError for a column without a value."""
        return "".join(text + ("" if name is None else values[name]) for text, name in self.pieces)


@lru_cache(maxsize=64)
def parse(text: str) -> Template:
    """Parse a template. Raises TemplateInvalid."""
    pieces: list[tuple[str, str | None]] = []
    literal, at = "", 0
    while at < len(text):
        brace = _next_brace(text, at)
        literal += text[at:brace]
        if text[brace : brace + 2] in ("{{", "}}"):
            literal += text[brace]
            at = brace + 2
        elif brace < len(text):
            name = _field(text, brace)
            pieces.append((literal, name))
            literal, at = "", brace + len(name) + 2
        else:
            at = brace
    if len(pieces) > MAX_FIELDS:
        raise TemplateInvalid(f"has {len(pieces)} placeholders, at most {MAX_FIELDS} are allowed")
    return Template((*pieces, (literal, None)))


def _next_brace(text: str, at: int) -> int:
    places = (text.find("{", at), text.find("}", at))
    return min((place for place in places if place >= 0), default=len(text))


def _field(text: str, start: int) -> str:
    """The name between the brace at `start` and the next one."""
    end = text.find("}", start + 1)
    if text[start] == "}" or end < 0:
        raise TemplateInvalid(f"has a lone {text[start]!r} at character {start}; a literal brace is written twice")
    name = text[start + 1 : end]
    if not is_column(name):
        field = text[start : min(end + 1, start + 64)]
        raise TemplateInvalid(
            f"has {field!r} at character {start}, which is not a valid column: a name begins with a letter or _ "
            "and continues with letters, digits, _, - and inner spaces"
        )
    return name


def is_column(name: str) -> bool:
    """Whether this column can be used in a template."""
    if not 1 <= len(name) <= MAX_NAME or name.endswith(" "):
        return False
    return (name[0] == "_" or name[0].isalpha()) and all(
        character in _INNER or unicodedata.category(character)[0] in "LMN" for character in name
    )
