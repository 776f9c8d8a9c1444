"""Data sets of a node by name, split into training and held-out rows.

Rows stay columns (`Table`): only those that a task names are read. Every problem is a DataError that names it.
"""

import random
from dataclasses import dataclass, replace

from worker_agent.settings import MIN_EXAMPLES, MIN_HELD_OUT, AgentSettings, DatasetSettings
from worker_agent.training.files import read_dataset, read_path
from worker_agent.training.job_errors import DataError
from worker_agent.training.tables import Table
from worker_agent.training.values import without_values


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to train on, and rows that are never trained on."""

    train: Table
    held_out: Table


def load_split(settings: AgentSettings, name: str) -> Split:
    """The data set `name`, split by its `test_path`, its own test part, or its seed. Raises DataError."""
    if name not in settings.datasets:
        names = ", ".join(sorted(settings.datasets)) or "none"
        raise DataError("data_missing", f"this node has no data set {name!r}; it has: {names}")
    dataset = settings.datasets[name]
    train, test = read_dataset(name, dataset)
    if dataset.test_path is not None:
        test = read_path(f"{name} (test)", dataset.test_path)[0]
    if train.rows == 0:
        raise DataError("data_empty", f"{name} has no rows")
    train, test = _without_valueless(train, test)
    split = Split(train, test) if test is not None else _draw_split(train, dataset)
    if split.train.rows == 0:
        raise DataError("data_empty", f"{name} has {train.rows} rows, all of them held out")
    return split


def fingerprint(dataset: DatasetSettings) -> tuple[object, ...]:
    """A value that changes with the settings and the files of a data set (by size and modification time)."""
    files = [path for path in (dataset.path, dataset.test_path) if path is not None]
    files += [inner for path in files if path.is_dir() for inner in sorted(path.rglob("*"))]
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.exists()]
    return (dataset.model_dump_json(), tuple(stats))


def _without_valueless(train: Table, test: Table | None) -> tuple[Table, Table | None]:
    """Both parts, with `valueless` set to the columns without a value in any row of either."""
    parts = [train] if test is None else [train, test]
    valueless = frozenset(
        name for name in train.columns if without_values([part.columns.get(name, ()) for part in parts])
    )
    return replace(train, valueless=valueless), None if test is None else replace(test, valueless=valueless)


def _draw_split(table: Table, dataset: DatasetSettings) -> Split:
    order = list(range(table.rows))
    random.Random(dataset.split_seed).shuffle(order)  # noqa: S311 - a split is no secret
    held_out = round(table.rows * dataset.held_out)
    if dataset.held_out > 0 and table.rows > 1:
        fewest = MIN_HELD_OUT if table.rows >= MIN_EXAMPLES + MIN_HELD_OUT else 1
        held_out = min(max(held_out, fewest), table.rows - 1)
    # Sorted, so that rows keep the file's order on both sides.
    return Split(table.take(sorted(order[held_out:])), table.take(sorted(order[:held_out])))
