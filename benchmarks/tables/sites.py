"""Split of a task over the clients of a federation, as files for their sessions."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tables.definition import Table
from examples.quickstart import tasks
from examples.quickstart.tasks import Row as TextRow
from worker_agent.settings import DatasetSettings

MIN_ROWS = 16
DRAWS = 1000
_FIT_ITERATIONS = 200


Shares = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Site:
    """Files of one task and seed: training rows for each client, and test rows for the clients that evaluate.

    `testers`: the clients that evaluate.
    """

    task: str
    seed: int
    labels: tuple[str, ...]
    folder: Path
    clients: int
    testers: tuple[int, ...]

    def dataset(self, ordinal: int) -> str:
        """Name of a client's data set."""
        return f"client-{ordinal:03}"

    def rows(self, ordinal: int) -> Path:
        """File of a client's training rows."""
        return self.folder / f"{self.dataset(ordinal)}.jsonl"

    def test_rows(self, ordinal: int) -> Path | None:
        """File of a client's test rows, if it evaluates."""
        return self.folder / f"test-{ordinal:03}.jsonl" if ordinal in self.testers else None

    def datasets(self) -> dict[str, DatasetSettings]:
        """Settings of all data sets. No training row is held out."""
        return {
            self.dataset(ordinal): DatasetSettings(
                path=self.rows(ordinal), test_path=self.test_rows(ordinal), held_out=0
            )
            for ordinal in range(self.clients)
        }


def make_site(data: Path, task: str, seed: int, table: Table, folder: Path) -> Site:
    """Split the task in `data` by `seed` into files in `folder`. The test rows are the same for every seed.

    Raises SystemExit with the fault in the data.
    """
    text = tasks.folder(data / task, seed=0)
    rows, test = _sample(text.pooled, table.train_rows), _sample(text.test, table.test_rows)
    draw = random.Random(f"{task} {seed}")
    parts, shares = split_rows(rows, text.labels, table.clients, table.alpha, draw, table.sizes)
    tests = deal(_by_label(test, text.labels), shares) if table.test_shares else _all_to_the_last(test, table.clients)
    testers = tuple(ordinal for ordinal, part in enumerate(tests) if part)
    site = Site(task, seed, text.labels, folder, table.clients, testers)
    folder.mkdir(parents=True)
    for ordinal, part in enumerate(parts):
        tasks.write_rows(site.rows(ordinal), part)
    for ordinal in testers:
        tasks.write_rows(folder / f"test-{ordinal:03}.jsonl", tests[ordinal])
    return site


def split_rows(
    rows: Sequence[TextRow],
    labels: Sequence[str],
    clients: int,
    alpha: float,
    draw: random.Random,
    sizes: float | None = None,
) -> tuple[list[list[TextRow]], Shares]:
    """Split `rows` over the clients. Returns the rows of each client, and the shares of each label.

    The shares come from weights drawn for each label and client. Scaled to 1 they are a symmetric Dirichlet draw with
    `alpha`. They are scaled over the clients, or with `sizes` over the labels of a client and then to client sizes
    that are a symmetric Dirichlet draw with `sizes`. The draw is repeated until every client has MIN_ROWS rows of at
    least two labels. Raises SystemExit if that fails DRAWS times.
    """
    by_label = _by_label(rows, labels)
    for _ in range(DRAWS):
        permutation, weights = {}, {}
        for label, same in by_label.items():
            permutation[label] = draw.sample(same, len(same))
            weights[label] = _gammas(alpha, clients, draw)
        if sizes is not None:
            # A sample may have no row of a rare label, whose shares then stay as drawn.
            totals = {label: len(same) for label, same in by_label.items() if same}
            weights |= _fit(weights, totals, _scale(_gammas(sizes, clients, draw), len(rows)))
        shares = {label: _scale(row, 1.0) for label, row in weights.items()}
        parts = deal(permutation, shares)
        if all(len(part) >= MIN_ROWS and len({row["label"] for row in part}) > 1 for part in parts):
            return parts, shares
    raise SystemExit(f"{len(rows)} rows are too few to split over {clients} clients with alpha {alpha}")


def deal(by_label: Mapping[str, Sequence[TextRow]], shares: Shares) -> list[list[TextRow]]:
    """The rows of each client, label by label, in their order."""
    parts: list[list[TextRow]] = [[] for _ in next(iter(shares.values()))]
    for label, rows in by_label.items():
        first, cumulative = 0, 0.0
        for share, part in zip(shares[label], parts, strict=True):
            cumulative += share
            last = round(cumulative * len(rows))
            part.extend(rows[first:last])
            first = last
    return parts


def _fit(
    weights: Mapping[str, list[float]], labels: Mapping[str, int], clients: list[float]
) -> dict[str, list[float]]:
    """Scale the weights alternately until they sum to these numbers per label and per client."""
    fit = {label: weights[label] for label in labels}
    for _ in range(_FIT_ITERATIONS):
        sums = [sum(column) for column in zip(*fit.values(), strict=True)]
        for label, row in fit.items():
            fit[label] = [weight * size / whole for weight, size, whole in zip(row, clients, sums, strict=True)]
        fit = {label: _scale(row, labels[label]) for label, row in fit.items()}
    return fit


def _gammas(alpha: float, count: int, draw: random.Random) -> list[float]:
    return [draw.gammavariate(alpha, 1.0) + 1e-9 for _ in range(count)]


def _scale(values: Sequence[float], total: float) -> list[float]:
    whole = sum(values)
    return [value / whole * total for value in values]


def _all_to_the_last(rows: Sequence[TextRow], clients: int) -> list[Sequence[TextRow]]:
    return [*([] for _ in range(clients - 1)), rows]


def _by_label(rows: Sequence[TextRow], labels: Sequence[str]) -> dict[str, list[TextRow]]:
    groups: dict[str, list[TextRow]] = {label: [] for label in labels}
    for row in rows:
        groups[row["label"]].append(row)
    return groups


def _sample(rows: Sequence[TextRow], most: int | None) -> Sequence[TextRow]:
    return rows if most is None or len(rows) <= most else random.Random(0).sample(rows, most)
