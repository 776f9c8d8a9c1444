"""Display names: printable text in Unicode's normal form C, and the visible appearance of a text.

Names that look the same must be equal everywhere, so a name has no invisible characters. Identifiers (of algorithms,
modules, tensors) have rules of their own.
"""

import unicodedata
from itertools import chain
from typing import Annotated

from pydantic import AfterValidator, Field

MAX_NAME = 128
_MAX_UNCOMPOSED = 8 * MAX_NAME
# Letters and marks by category that are blank or have no width. `str.isprintable` accepts them.
_BLANK = frozenset(
    map(
        chr,
        chain(
            (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180F, 0x2800, 0x3164, 0xFFA0),
            range(0x180B, 0x180E),
            range(0xFE00, 0xFE10),
            range(0xE0100, 0xE01F0),
        ),
    )
)


def normal_form(text: str) -> str:
    """The text in normal form C, in which names are stored and compared."""
    return unicodedata.normalize("NFC", text)


def appearance(text: str) -> str:
    """The visible text: in normal form C, without invisible characters, and with runs of whitespace as one space.

    Texts of the same appearance look the same. Similar letters of different alphabets stay different.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    visible = "".join(character for character in text if character.isspace() or not _is_invisible(character))
    return " ".join(normal_form(visible).split())


def _is_invisible(character: str) -> bool:
    return character in _BLANK or unicodedata.category(character) in ("Cc", "Cf")


def valid_name(text: str) -> str:
    """The name in normal form C. Raises ValueError if it is empty, too long, or has invisible characters."""
    name = normal_form(text[:_MAX_UNCOMPOSED])
    if not name:
        raise ValueError("is empty")
    if len(name) > MAX_NAME or len(text) > _MAX_UNCOMPOSED:
        raise ValueError(f"is longer than {MAX_NAME} characters")
    hidden = next((character for character in name if not character.isprintable() or character in _BLANK), None)
    if hidden is not None:
        raise ValueError(f"has the character U+{ord(hidden):04X}, which is neither visible nor a plain space")
    if name != name.strip(" "):
        raise ValueError("begins or ends with a space")
    return name


NormalText = Annotated[str, AfterValidator(normal_form)]
Name = Annotated[
    str,
    AfterValidator(valid_name),
    Field(
        description="any printable text, kept in Unicode's normal form C",
        json_schema_extra={"minLength": 1, "maxLength": MAX_NAME},
    ),
]
