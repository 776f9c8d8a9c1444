"""A node's data sets by name: rows out of JSONL, CSV, Parquet, a `datasets` folder or the hub, and their split.

Rows stay columns (`Table`): only those a task names are looked at. Every problem is a DataError that names it.
"""

import csv
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker_agent.settings import MIN_EXAMPLES, MIN_HELD_OUT, AgentSettings, DatasetSettings
from worker_agent.training.refusals import DataError

LINE_SUFFIXES = {".jsonl", ".ndjson", ".json"}
TEST_SPLITS = ("test", "validation")


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of equal length; `name` is what errors call it. A value a row does not have is None."""

    name: str
    columns: Mapping[str, Sequence[Any]]

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def column(self, wanted: str, readable: Mapping[str, str]) -> Sequence[Any]:
        """The column that `readable` gives for `wanted`.

        Raises policy_column for one that is not readable, data_column_missing for one that is not there.
        """
        if wanted not in readable:
            names = ", ".join(sorted(readable)) or "none"
            detail = f"{self.name}: column {wanted!r} is not among those that may be read: {names}"
            raise DataError("policy_column", f"{detail}; its owner can list it in `columns`", column=wanted)
        actual = readable[wanted]
        if actual not in self.columns:
            seen = ", ".join(sorted(self.columns)) or "none"
            detail = f"{self.name} has no column {actual!r} ({wanted}); it has: {seen}"
            raise DataError("data_column_missing", detail, column=wanted)
        return self.columns[actual]

    def take(self, rows: Sequence[int]) -> "Table":
        """The table of these rows, in this order."""
        return Table(self.name, {name: [values[row] for row in rows] for name, values in self.columns.items()})


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """What the owner of a node sees of a data set; `token_lengths` are quantiles (tokens), or None untokenised."""

    name: str
    columns: tuple[str, ...]
    rows: int
    held_out_rows: int
    label_counts: Mapping[str, int]
    token_lengths: Mapping[str, int] | None


@dataclass(frozen=True, slots=True)
class Split:
    """What is trained on, and what never is."""

    train: Table
    held_out: Table


def load_split(settings: AgentSettings, name: str) -> Split:
    """The data set `name`, split by its `test_path`, its own test part, or its seed. Raises DataError."""
    if name not in settings.datasets:
        known = ", ".join(sorted(settings.datasets)) or "none"
        raise DataError("data_missing", f"this node has no data set {name!r}; it has: {known}")
    chosen = settings.datasets[name]
    train, test = _read_chosen(name, chosen)
    if chosen.test_path is not None:
        test = _read_path(f"{name} (test)", chosen.test_path)[0]
    if train.rows == 0:
        raise DataError("data_empty", f"{name} has no rows")
    split = Split(train, test) if test is not None else _drawn(train, chosen)
    if split.train.rows == 0:
        raise DataError("data_empty", f"{name} has {train.rows} rows, all of them held out")
    return split


def fingerprint(dataset: DatasetSettings) -> tuple[object, ...]:
    """Changes when the settings or the files of a data set do (by size and time of change)."""
    files = [path for path in (dataset.path, dataset.test_path) if path is not None]
    files += [inner for path in files if path.is_dir() for inner in sorted(path.rglob("*"))]
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.exists()]
    return (dataset.model_dump_json(), tuple(stats))


def _read_chosen(name: str, chosen: DatasetSettings) -> tuple[Table, Table | None]:
    if (chosen.path is None) == (chosen.hub is None):
        raise DataError("data_missing", f"{name} needs exactly one of path and hub in the settings")
    if chosen.path is not None:
        return _read_path(name, chosen.path)
    return _read_hub(name, chosen), None


def _read_path(name: str, path: Path) -> tuple[Table, Table | None]:
    """The rows at `path` and, where a `datasets` folder has one, its test part."""
    if not path.exists():
        raise DataError("data_missing", f"{name}: there is nothing at {path}")
    readers = {".csv": _read_csv, ".parquet": _read_parquet} | dict.fromkeys(LINE_SUFFIXES, _read_lines)
    try:
        if path.is_dir():
            return _read_folder(name, path)
        if path.suffix.lower() not in readers:
            raise DataError("data_missing", f"{name}: {path.name} is neither JSONL, CSV nor Parquet by its ending")
        return readers[path.suffix.lower()](name, path), None
    except (OSError, ValueError) as error:
        raise DataError("data_missing", f"{name}: {path} cannot be read: {error}") from error


def _read_lines(name: str, path: Path) -> Table:
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                rows.append(_json_row(line, number))
    names = sorted({column for row in rows for column in row})
    return Table(name, {column: [row.get(column) for row in rows] for column in names})


def _json_row(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is not a JSON object")
    return row


def _read_csv(name: str, path: Path) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    names = reader.fieldnames or ()
    return Table(name, {column: [row[column] for row in rows] for column in names})


def _read_parquet(name: str, path: Path) -> Table:
    from pyarrow import parquet

    return Table(name, parquet.read_table(path).to_pydict())


def _read_folder(name: str, path: Path) -> tuple[Table, Table | None]:
    import datasets

    loaded = datasets.load_from_disk(str(path))
    if not isinstance(loaded, datasets.DatasetDict):
        return _of_dataset(name, loaded), None
    if "train" not in loaded:
        raise DataError("data_missing", f"{name}: {path} has no part 'train'; it has: {', '.join(sorted(loaded))}")
    test = next((loaded[part] for part in TEST_SPLITS if part in loaded), None)
    return _of_dataset(name, loaded["train"]), None if test is None else _of_dataset(f"{name} (test)", test)


def _read_hub(name: str, chosen: DatasetSettings) -> Table:
    import datasets

    try:
        return _of_dataset(name, datasets.load_dataset(chosen.hub, chosen.hub_subset, split=chosen.hub_split))
    except (OSError, ValueError) as error:
        raise DataError("data_missing", f"{name}: {chosen.hub} cannot be loaded: {error}") from error


def _of_dataset(name: str, dataset: Any) -> Table:
    """A class label becomes its name: a data set's own numbering need not be the federation's."""
    columns = dataset.to_dict()
    for column, feature in dataset.features.items():
        names = getattr(feature, "names", None)
        if names is not None:
            columns[column] = [
                names[value] if value is not None and value >= 0 else None for value in columns[column]
            ]
    return Table(name, columns)


def _drawn(table: Table, chosen: DatasetSettings) -> Split:
    order = list(range(table.rows))
    random.Random(chosen.split_seed).shuffle(order)  # noqa: S311 - a split is no secret
    held_out = round(table.rows * chosen.held_out)
    if chosen.held_out > 0 and table.rows > 1:
        fewest = MIN_HELD_OUT if table.rows >= MIN_EXAMPLES + MIN_HELD_OUT else 1
        held_out = min(max(held_out, fewest), table.rows - 1)
    # Sorted, so that rows keep the file's order on both sides.
    return Split(table.take(sorted(order[held_out:])), table.take(sorted(order[:held_out])))


def texts(table: Table, wanted: str, readable: Mapping[str, str]) -> list[str]:
    """A column as text. Raises data_column_missing, also where rows have no value, and policy_column."""
    values = table.column(wanted, readable)
    missing = [row for row, value in enumerate(values) if value is None]
    if missing:
        detail = f"{table.name}, row {missing[0]}: no value for {wanted!r}"
        raise DataError("data_column_missing", detail, column=wanted, count=len(missing), of=table.rows)
    return [str(value) for value in values]


def label_indices(table: Table, labels: Sequence[str], readable: Mapping[str, str]) -> list[int]:
    """The label column as indices into `labels`; a value is a label's name or its index.

    Raises data_unknown_label, data_column_missing, policy_column.
    """
    values = table.column("label", readable)
    by_name = {label: index for index, label in enumerate(labels)}
    indices = [_label(by_name, value) for value in values]
    unknown = [row for row, index in enumerate(indices) if index is None]
    if unknown:
        name, known = str(values[unknown[0]])[:64], ", ".join(by_name)
        detail = f"{table.name}, row {unknown[0]}: label {name!r} is not one of: {known}"
        facts = {"count": len(unknown), "of": table.rows}
        raise DataError("data_unknown_label", f"{detail} (or an index below {len(by_name)})", column="label", **facts)
    return [index for index in indices if index is not None]


def _label(by_name: Mapping[str, int], value: Any) -> int | None:
    name = str(value)
    if name in by_name and not isinstance(value, int):
        return by_name[name]
    if not isinstance(value, bool) and name.isdecimal() and len(name) < 10 and int(name) < len(by_name):
        return int(name)
    return None


def describe_dataset(
    settings: AgentSettings, name: str, labels: Sequence[str] | None = None, tokenizer_path: str | None = None
) -> DatasetSummary:
    """Rows, label counts (train and held out) and token lengths of a data set. Raises DataError.

    With `labels`, counts are by those names, and a label outside them is an error.
    """
    split = load_split(settings, name)
    mapping = settings.datasets[name].readable
    parts = (split.train, split.held_out)
    return DatasetSummary(
        name=name,
        columns=tuple(sorted(split.train.columns)),
        rows=split.train.rows,
        held_out_rows=split.held_out.rows,
        label_counts=_label_counts(parts, mapping, labels),
        token_lengths=None if tokenizer_path is None else _token_lengths(parts, mapping, tokenizer_path),
    )


def _label_counts(parts: Sequence[Table], mapping: Mapping[str, str], labels: Sequence[str] | None) -> dict[str, int]:
    filled = [part for part in parts if part.rows]
    if labels is not None:
        values = [labels[index] for part in filled for index in label_indices(part, labels, mapping)]
        return {label: values.count(label) for label in labels}
    column = mapping.get("label", "label")
    counts = Counter(str(value) for part in filled for value in part.columns.get(column, ()))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _token_lengths(parts: Sequence[Table], mapping: Mapping[str, str], tokenizer_path: str) -> dict[str, int]:
    from worker_agent.training.tokens import load_tokenizer

    classified = mapping.get("text") in parts[0].columns
    wanted = ("text", "text_pair") if classified else ("instruction", "input", "output")
    present = [name for name in wanted if mapping.get(name) in parts[0].columns] or wanted[:1]
    tokenizer = load_tokenizer(Path(tokenizer_path))
    lengths: list[int] = []
    for part in parts:
        if part.rows:
            columns = [[str(value or "") for value in part.column(name, mapping)] for name in present]
            joined = ["\n".join(row) for row in zip(*columns, strict=True)]
            lengths += [len(ids) for ids in tokenizer(joined, verbose=False)["input_ids"]]
    lengths.sort()
    quantiles = {"median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: lengths[min(int(share * len(lengths)), len(lengths) - 1)] for name, share in quantiles.items()}
