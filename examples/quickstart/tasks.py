"""The text of the demo: our own support messages, or a folder of JSONL cut over the organisations."""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.quickstart import messages

Row = Mapping[str, Any]
ORGANISATIONS = ("bank", "clinic", "telecom")
DIRICHLET_ALPHA = 0.5
MIN_ROWS = 16
MAX_TEST_ROWS = 1000


@dataclass(frozen=True)
class TextTask:
    """Rows (`text`, optional `text_pair`, `label`) of each organisation, and the held-out ones."""

    name: str
    labels: tuple[str, ...]
    parts: Mapping[str, Sequence[Row]]
    test: Sequence[Row]

    @property
    def pooled(self) -> list[Row]:
        """Everybody's training rows, in the order of the organisations."""
        return [row for rows in self.parts.values() for row in rows]

    def label_shares(self) -> dict[str, dict[str, float]]:
        """Organisation -> label -> share of its rows."""
        counts = {name: Counter(row["label"] for row in rows) for name, rows in self.parts.items()}
        return {
            name: {label: count[label] / max(1, count.total()) for label in self.labels}
            for name, count in counts.items()
        }


def support_messages(seed: int) -> TextTask:
    """Support messages of a bank, a clinic and a telecom provider."""
    corpus = messages.generate(seed)
    return TextTask("support messages", messages.LABELS, corpus.train, corpus.test)


def folder(path: Path, seed: int) -> TextTask:
    """`train.jsonl` and `test.jsonl` in `path`, the training rows cut over the organisations by a Dirichlet draw.

    A label is text or an index; labels are named by their text. Raises SystemExit with what is wrong.
    """
    train, test = (_rows(path / f"{part}.jsonl") for part in ("train", "test"))
    labels = tuple(sorted({row["label"] for row in train}, key=_natural))
    unknown = {row["label"] for row in test} - set(labels)
    if unknown:
        raise SystemExit(f"{path / 'test.jsonl'}: label {min(unknown)!r} does not occur in train.jsonl")
    if len(test) > MAX_TEST_ROWS:
        test = random.Random(seed).sample(test, MAX_TEST_ROWS)
    return TextTask(path.name, labels, dirichlet(train, labels, random.Random(seed)), test)


def dirichlet(rows: Sequence[Row], labels: Sequence[str], draw: random.Random) -> dict[str, list[Row]]:
    """Cut `rows` over the organisations: of each label, shares drawn from a symmetric Dirichlet.

    Drawn again until everybody has MIN_ROWS rows of at least two labels; raises SystemExit if that never happens.
    """
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[row["label"]].append(row)
    for _ in range(200):
        parts: dict[str, list[Row]] = {name: [] for name in ORGANISATIONS}
        for label in labels:
            _deal(draw.sample(by_label[label], len(by_label[label])), parts, draw)
        if all(len(part) >= MIN_ROWS and len({row["label"] for row in part}) > 1 for part in parts.values()):
            return {name: draw.sample(part, len(part)) for name, part in parts.items()}
    raise SystemExit(f"{len(rows)} rows are too few to cut over {len(ORGANISATIONS)} organisations")


def _deal(rows: Sequence[Row], parts: Mapping[str, list[Row]], draw: random.Random) -> None:
    weights = [draw.gammavariate(DIRICHLET_ALPHA, 1.0) + 1e-9 for _ in parts]
    start, cumulative = 0, 0.0
    for weight, part in zip(weights, parts.values(), strict=True):
        cumulative += weight / sum(weights)
        end = round(cumulative * len(rows))
        part.extend(rows[start:end])
        start = end


def _rows(file: Path) -> list[Row]:
    if not file.is_file():
        raise SystemExit(f"{file} is missing: DATA must be a folder with train.jsonl and test.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    for number, row in enumerate(rows, 1):
        if "text" not in row or "label" not in row:
            raise SystemExit(f"{file}, line {number}: a row needs text and label")
    return [{**row, "label": str(row["label"])} for row in rows]


def _natural(label: str) -> tuple[int, str]:
    return (int(label), "") if label.isdigit() else (1 << 30, label)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Store rows as JSONL."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
