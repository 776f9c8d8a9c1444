"""Generator of the demo's default text: support messages of a bank, a clinic and a telecom provider.

The messages are drawn from a seed. Every organization has every intent in its own words, and two intents make up most
of its messages, so that none learns alone how the others write. Held-out messages have the same meanings in phrases
that do not occur in training.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Final, TypedDict

from examples.quickstart import held_out_phrases, training_phrases

LABELS: Final[tuple[str, ...]] = (
    "appointment",
    "billing",
    "cancellation",
    "complaint",
    "information",
    "login",
)
FREQUENT_LABELS: Final[Mapping[str, tuple[str, str]]] = {
    "bank": ("billing", "login"),
    "clinic": ("appointment", "complaint"),
    "telecom": ("cancellation", "information"),
}
FREQUENT_ROWS: Final = (80, 72)
RARE_ROWS: Final = 12
TEST_ROWS: Final = 17
_CHOICE = re.compile(r"\[([^\]]*)\]")


class Row(TypedDict):
    """A message and its intent, one of LABELS."""

    text: str
    label: str


@dataclass(frozen=True)
class Corpus:
    """train: organization -> its private messages. test: held-out messages of all, balanced over the labels."""

    train: dict[str, list[Row]]
    test: list[Row]


def organizations() -> tuple[str, ...]:
    """Names in the order in which they join the federation."""
    return tuple(FREQUENT_LABELS)


def generate(seed: int) -> Corpus:
    """The corpus of a seed: 200 training messages per organization and 306 held-out ones, all different."""
    draw = random.Random(seed)
    train = {name: _training_rows(name, draw) for name in organizations()}
    test = [
        row
        for name in organizations()
        for label in LABELS
        for row in _rows(held_out_phrases, name, label, TEST_ROWS, draw)
    ]
    draw.shuffle(test)
    return Corpus(train, test)


def _training_rows(organization: str, draw: random.Random) -> list[Row]:
    counts = dict.fromkeys(LABELS, RARE_ROWS) | dict(zip(FREQUENT_LABELS[organization], FREQUENT_ROWS, strict=True))
    rows = [row for label in LABELS for row in _rows(training_phrases, organization, label, counts[label], draw)]
    draw.shuffle(rows)
    return rows


def _rows(phrasing: ModuleType, organization: str, label: str, count: int, draw: random.Random) -> list[Row]:
    """`count` different messages, with every phrase about equally often."""
    phrases = list(phrasing.PHRASES[organization][label])
    draw.shuffle(phrases)
    texts: dict[str, None] = {}  # a dict and not a set: its order does not depend on the hash seed
    while len(texts) < count:
        phrase = phrases[len(texts) % len(phrases)]
        texts[_message(phrase, draw.choice(phrasing.OPENINGS), draw.choice(phrasing.CLOSINGS), draw)] = None
    return [{"text": text, "label": label} for text in texts]


def _message(phrase: str, opening: str, closing: str, draw: random.Random) -> str:
    sentence = _CHOICE.sub(lambda match: draw.choice(match.group(1).split("|")), phrase)
    if not sentence.endswith("?"):
        sentence += "."
    return " ".join(part for part in (opening, sentence, closing) if part)
