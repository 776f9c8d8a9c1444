"""Readers for JSONL, JSON, CSV, Parquet, `datasets` folders and the hub. A file is read completely or refused.

Nothing is guessed: a row that does not fit its header, or a column that occurs twice, is a ValueError with its line.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from worker_agent.settings import DatasetSettings
from worker_agent.training.job_errors import DataError
from worker_agent.training.tables import Table

JSON_SUFFIXES = {".jsonl", ".ndjson", ".json"}
TEST_SPLITS = ("test", "validation")
LONGEST_CELL = 2**31 - 1
"""In characters; the default of the csv module is 131,072."""


def read_dataset(name: str, dataset: DatasetSettings) -> tuple[Table, Table | None]:
    """The rows of a data set and, if a `datasets` folder has one, its test part. Raises DataError."""
    if (dataset.path is None) == (dataset.hub is None):
        raise DataError("data_missing", f"{name} needs exactly one of path and hub in the settings")
    if dataset.path is not None:
        return read_path(name, dataset.path)
    return _read_hub(name, dataset), None


def read_path(name: str, path: Path) -> tuple[Table, Table | None]:
    """The rows at `path` and, if a `datasets` folder has one, its test part. Raises DataError (data_missing)."""
    if not path.exists():
        raise DataError("data_missing", f"{name}: there is nothing at {path}")
    readers = {".csv": _read_csv, ".parquet": _read_parquet} | dict.fromkeys(JSON_SUFFIXES, _read_json)
    try:
        if path.is_dir():
            return _read_folder(name, path)
        if path.suffix.lower() not in readers:
            raise DataError("data_missing", f"{name}: {path.name} is neither JSONL, CSV nor Parquet by its ending")
        return readers[path.suffix.lower()](name, path), None
    except (OSError, ValueError) as error:
        raise DataError("data_missing", f"{name}: {path} cannot be read: {error}") from error


def _read_json(name: str, path: Path) -> Table:
    """One object per line, or an array of objects."""
    with path.open(encoding="utf-8-sig") as file:
        is_array = file.read(4096).lstrip().startswith("[")
    rows = _array(path) if is_array else _lines(path)
    names = sorted({column for row in rows.values() for column in row})
    columns = {column: [row.get(column) for row in rows.values()] for column in names}
    return Table(name, columns, list(rows), f"{path.name} {'row' if is_array else 'line'}")


def _array(path: Path) -> dict[int, dict[str, Any]]:
    rows = _parse_json(path.read_text(encoding="utf-8-sig"), "it begins as an array and")
    return {number: _object(row, f"row {number} of the array") for number, row in enumerate(rows)}


def _lines(path: Path) -> dict[int, dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        return {
            number: _object(_parse_json(line, f"line {number}"), f"line {number}")
            for number, line in enumerate(file, start=1)
            if line.strip()
        }


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object_from_pairs)
    except RecursionError:
        raise ValueError(f"{place} is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON ({error}); an object a line is read, or an array of objects") from None
    except ValueError as error:
        raise ValueError(f"{place} {error}") from None


def _object_from_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"has {_duplicate([name for name, _ in pairs])!r} twice in one object")
    return row


def _duplicate(names: Sequence[str]) -> str | None:
    """A name that occurs more than once, or None."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{place} is not a JSON object")
    return row


def _read_csv(name: str, path: Path) -> Table:
    csv.field_size_limit(LONGEST_CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = _csv_rows(file)
        first, header = next(lines, (1, []))
        if (duplicate := _duplicate([column.strip() for column in header if column.strip()])) is not None:
            raise ValueError(f"line {first}: the header has the column {duplicate!r} twice; rename one of them")
        # Trailing commas in a header name no column, and the cells below them must be empty.
        width = max((place + 1 for place, column in enumerate(header) if column.strip()), default=0)
        rows, numbers = [], []
        for number, cells in lines:
            if len(cells) > len(header) or any(cell.strip() for cell in cells[width:]):
                detail = f"line {number} has {len(cells)} cells and the header {width}: {', '.join(header[:width])}"
                raise ValueError(f"{detail}; a text with a comma in it stands in quotation marks")
            rows.append(cells + [None] * (len(header) - len(cells)))
            numbers.append(number)
    columns = {column: [row[place] for row in rows] for place, column in enumerate(header) if column.strip()}
    return Table(name, columns, numbers, f"{path.name} line")


def _csv_rows(file: Iterator[str]) -> Iterator[tuple[int, list[Any]]]:
    """The rows that are not blank, each with its first line number."""
    # Strict: otherwise a single quotation mark would merge all rows up to the next one.
    reader, line = csv.reader(file, strict=True), 1
    try:
        for cells in reader:
            if cells:
                yield line, list(cells)
            line = reader.line_num + 1
    except csv.Error as error:
        advice = 'a cell with quotation marks in it stands in such, and they are doubled ("")'
        raise ValueError(f"the row that begins on line {line} is not CSV ({error}); {advice}") from None


def _read_parquet(name: str, path: Path) -> Table:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        if (duplicate := _duplicate(table.column_names)) is not None:
            raise ValueError(f"it has the column {duplicate!r} twice; rename one of them")
        columns = table.to_pydict()
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error
    if b"huggingface" in (table.schema.metadata or {}):
        import datasets

        columns = _with_names(columns, datasets.Features.from_arrow_schema(table.schema))
    return Table(name, columns, None, f"{path.name} row")


def _read_folder(name: str, path: Path) -> tuple[Table, Table | None]:
    import datasets

    parts = datasets.load_from_disk(str(path))
    if not isinstance(parts, datasets.DatasetDict):
        return _of_dataset(name, parts), None
    if "train" not in parts:
        raise DataError("data_missing", f"{name}: {path} has no part 'train'; it has: {', '.join(sorted(parts))}")
    test = next((parts[part] for part in TEST_SPLITS if part in parts), None)
    return _of_dataset(name, parts["train"]), None if test is None else _of_dataset(f"{name} (test)", test)


def _read_hub(name: str, dataset: DatasetSettings) -> Table:
    import datasets

    try:
        return _of_dataset(name, datasets.load_dataset(dataset.hub, dataset.hub_subset, split=dataset.hub_split))
    except (OSError, ValueError) as error:
        raise DataError("data_missing", f"{name}: {dataset.hub} cannot be loaded: {error}") from error


def _of_dataset(name: str, dataset: Any) -> Table:
    return Table(name, _with_names(dataset.to_dict(), dataset.features))


def _with_names(columns: Mapping[str, Sequence[Any]], features: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """Replace class labels by their names, because a data set may number them differently from the federation."""
    columns_by_name = dict(columns)
    for column, feature in features.items():
        names = getattr(feature, "names", None)
        if names is not None:
            columns_by_name[column] = [
                names[value] if value is not None and value >= 0 else None for value in columns_by_name[column]
            ]
    return columns_by_name
