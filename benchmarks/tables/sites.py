"""A task cut over the clients of a federation, as files that their sessions read."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tables.definition import Table
from deploy.quickstart import tasks
from deploy.quickstart.tasks import Row as TextRow
from worker_agent.settings import DatasetSettings

MIN_ROWS = 16
DRAWS = 1000


@dataclass(frozen=True)
class Site:
    """Where the rows of one task and seed lie: a file for each client, and the test set in the last one's hands."""

    task: str
    seed: int
    labels: tuple[str, ...]
    folder: Path
    clients: int

    def dataset(self, ordinal: int) -> str:
        """The name of a client's data set."""
        return f"client-{ordinal:03}"

    def datasets(self) -> dict[str, DatasetSettings]:
        """All data sets; nobody holds out a row, the last client evaluates on the test set alone."""
        found = {}
        for ordinal in range(self.clients):
            test = self.folder / "test.jsonl" if ordinal == self.clients - 1 else None
            path = self.folder / f"{self.dataset(ordinal)}.jsonl"
            found[self.dataset(ordinal)] = DatasetSettings(path=path, test_path=test, held_out=0)
        return found


def make_site(data: Path, task: str, seed: int, table: Table, folder: Path) -> Site:
    """Cut the task in `data` by `seed` into `folder`; the test rows are the same for every seed.

    Raises SystemExit with what is wrong with the data.
    """
    text = tasks.folder(data / task, seed=0)
    rows = _sample(text.pooled, table.train_rows)
    parts = cut(rows, text.labels, table.clients, table.alpha, random.Random(f"{task} {seed}"))
    site = Site(task, seed, text.labels, folder, table.clients)
    folder.mkdir(parents=True)
    for ordinal, part in enumerate(parts):
        tasks.write_rows(folder / f"{site.dataset(ordinal)}.jsonl", part)
    tasks.write_rows(folder / "test.jsonl", _sample(text.test, table.test_rows))
    return site


def cut(
    rows: Sequence[TextRow], labels: Sequence[str], clients: int, alpha: float, draw: random.Random
) -> list[list[TextRow]]:
    """Deal `rows` to clients: of each label, shares drawn from a symmetric Dirichlet with `alpha`.

    Drawn again until everybody has MIN_ROWS rows of at least two labels; raises SystemExit if that never happens.
    """
    by_label: Mapping[str, list[TextRow]] = {label: [] for label in labels}
    for row in rows:
        by_label[row["label"]].append(row)
    for _ in range(DRAWS):
        parts: list[list[TextRow]] = [[] for _ in range(clients)]
        for same in by_label.values():
            _deal(draw.sample(same, len(same)), parts, alpha, draw)
        if all(len(part) >= MIN_ROWS and len({row["label"] for row in part}) > 1 for part in parts):
            return parts
    raise SystemExit(f"{len(rows)} rows are too few to cut over {clients} clients with alpha {alpha}")


def _deal(shuffled: Sequence[TextRow], parts: Sequence[list[TextRow]], alpha: float, draw: random.Random) -> None:
    shares = [draw.gammavariate(alpha, 1.0) + 1e-9 for _ in parts]
    first, reached = 0, 0.0
    for share, part in zip(shares, parts, strict=True):
        reached += share / sum(shares)
        last = round(reached * len(shuffled))
        part.extend(shuffled[first:last])
        first = last


def _sample(rows: Sequence[TextRow], most: int | None) -> Sequence[TextRow]:
    return rows if most is None or len(rows) <= most else random.Random(0).sample(rows, most)
