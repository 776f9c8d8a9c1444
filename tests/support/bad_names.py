"""Names as people write them, and characters that none may have."""

import unicodedata

from hypothesis import strategies as st

from federated.names import MAX_NAME

SHOWN = (
    "Städtische Klinik", "Acme, Inc.", "Befunde Ärzte", "東京大学", "Больница № 1", "مستشفى", "नमस्ते", "O'Brien & Søn",
    '"quoted"', "a/b\\c", "../etc", "[bold]", "{x}", "100 %", "🙂", "`|`", "-x", "None",
)  # fmt: skip
_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180f\u2800\u3164\ufe00\ufe0f\uffa0\U000e0100\U000e01ef"
_VISIBLE = st.characters(categories=["L", "M", "N", "P", "S"]).filter(
    lambda character: character.isprintable() and not _is_blank(character)
)
PRINTABLE = (
    st.text(st.one_of(st.just(" "), _VISIBLE), min_size=1, max_size=MAX_NAME)
    .map(lambda text: text.strip(" "))
    .filter(lambda text: 0 < len(unicodedata.normalize("NFC", text)) <= MAX_NAME)
)
"""Texts of letters, marks, numbers, punctuation, symbols and plain spaces, as long as a name may be."""
FORBIDDEN = st.one_of(
    st.characters(categories=["Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp"]),
    st.characters(categories=["Zs"], exclude_characters=" "),
    st.sampled_from(
        "\0\n\t\x1b\x7f\x9b\u00ad\u061c\u200b\u200c\u200d\u200e\u200f\u202a\u202e\u2060\u2066\u2069\ufeff"
    ),
    st.sampled_from(_BLANK),
)
"""Control and format characters (zero-width, bidirectional), other spaces, and letters without ink."""


def _is_blank(character: str) -> bool:
    return character in _BLANK or "VARIATION SELECTOR" in unicodedata.name(character, "")
