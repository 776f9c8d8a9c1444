"""The default text of the demo: support messages of a bank, a clinic and a telecom provider."""

import random
import re
from dataclasses import dataclass
from typing import Final, TypedDict

from deploy.quickstart.phrases import CLOSINGS, HELD_OUT, OPENINGS, TRAINING, Sentences

LABELS: Final = ("appointment", "billing", "cancellation", "complaint", "information", "login")
ROWS: Final = {
    "bank": {"appointment": 10, "billing": 80, "cancellation": 10, "complaint": 10, "information": 10, "login": 70},
    "clinic": {"appointment": 80, "billing": 10, "cancellation": 10, "complaint": 70, "information": 10, "login": 10},
    "telecom": {"appointment": 10, "billing": 10, "cancellation": 80, "complaint": 10, "information": 70, "login": 10},
}
TEST_ROWS = 17
CHOICE = re.compile(r"\[([^\]]*)\]")


class Row(TypedDict):
    text: str
    label: str


@dataclass(frozen=True)
class Corpus:
    train: dict[str, list[Row]]
    test: list[Row]


def organisations() -> tuple[str, ...]:
    return tuple(ROWS)


def generate(seed: int) -> Corpus:
    draw = random.Random(seed)
    train = {
        o: _shuffled([r for l, n in ROWS[o].items() for r in _rows(TRAINING, o, l, n, "train", draw)], draw)
        for o in ROWS
    }
    test = [r for o in ROWS for l in LABELS for r in _rows(HELD_OUT, o, l, TEST_ROWS, "test", draw)]
    return Corpus(train, _shuffled(test, draw))


def _shuffled(rows, draw):
    draw.shuffle(rows)
    return rows


def _rows(sentences: Sentences, organisation: str, label: str, count: int, split: str, draw: random.Random) -> list[Row]:
    of_label = list(sentences[organisation][label])
    texts: dict[str, None] = {}
    draw.shuffle(of_label)
    i = 0
    while len(texts) < count:
        core = CHOICE.sub(lambda m: draw.choice(m.group(1).split("|")), of_label[i % len(of_label)])
        if core[-1] not in "?":
            core += "."
        texts[" ".join(p for p in (draw.choice(OPENINGS[split]), core, draw.choice(CLOSINGS[split])) if p)] = None
        i += 1
    return [{"text": t, "label": label} for t in texts]
