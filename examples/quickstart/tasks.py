"""Text tasks of the demo: the support messages, or a folder of JSONL split over the organizations."""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.quickstart import messages

Row = Mapping[str, Any]
ORGANIZATIONS = ("bank", "clinic", "telecom")
DIRICHLET_ALPHA = 0.5
MIN_ROWS = 16
MAX_TEST_ROWS = 1000


@dataclass(frozen=True)
class TextTask:
    """Rows (`text`, optional `text_pair`, `label`) of each organization, and held-out rows."""

    name: str
    labels: tuple[str, ...]
    parts: Mapping[str, Sequence[Row]]
    test: Sequence[Row]

    @property
    def pooled(self) -> list[Row]:
        """All training rows, in the order of the organizations."""
        return [row for rows in self.parts.values() for row in rows]

    def label_shares(self) -> dict[str, dict[str, float]]:
        """Organization -> label -> share of its rows."""
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
    """The task in `train.jsonl` and `test.jsonl` of `path`, with training rows split by a Dirichlet draw.

    A label is text or an index, and is named by its text. Raises SystemExit with the fault.
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
    """Split `rows` over the organizations, by shares of each label from a symmetric Dirichlet.

    The draw is repeated until each has MIN_ROWS rows of at least two labels. Raises SystemExit if it never does.
    """
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[row["label"]].append(row)
    for _ in range(200):
        parts: dict[str, list[Row]] = {name: [] for name in ORGANIZATIONS}
        for label in labels:
            _deal(draw.sample(by_label[label], len(by_label[label])), parts, draw)
        if all(len(part) >= MIN_ROWS and len({row["label"] for row in part}) > 1 for part in parts.values()):
            return {name: draw.sample(part, len(part)) for name, part in parts.items()}
    raise SystemExit(f"{len(rows)} rows are too few to split over {len(ORGANIZATIONS)} organizations")


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
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
