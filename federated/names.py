"""Names that are only shown: any printable text, in one normal form; and what a text looks like.

What looks alike is to be one name on all sides, so nothing that cannot be seen may stand in one, and all are in
Unicode's normal form C. Names that are identifiers (algorithms, modules, tensors) are not of these.
"""

import unicodedata
from itertools import chain
from typing import Annotated

from pydantic import AfterValidator, Field

MAX_NAME = 128
_MAX_UNCOMPOSED = 8 * MAX_NAME
# Letters and marks by their category, and yet of no width or blank: what `str.isprintable` lets pass.
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
    """The text in normal form C, in which names are kept and compared."""
    return unicodedata.normalize("NFC", text)


def appearance(text: str) -> str:
    """The text as a reader has it: in normal form C, nothing that cannot be seen, and one plain space for any others.

    Two texts of one appearance cannot be told apart by eye. Letters of two alphabets that look alike stay two.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    visible = "".join(character for character in text if character.isspace() or not _is_unseen(character))
    return " ".join(normal_form(visible).split())


def _is_unseen(character: str) -> bool:
    return character in _BLANK or unicodedata.category(character) in ("Cc", "Cf")


def valid_name(text: str) -> str:
    """The name in normal form C. Raises ValueError for what is too long or cannot be told from another by eye."""
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
