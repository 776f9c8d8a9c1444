"""Values of cells: text, numbers and truth values, or None, in whatever form a file writes them.

Lists, objects, bytes, dates and all other types are refused by column, row and type.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np

from worker_agent.training.job_errors import DataError
from worker_agent.training.tables import Table

Value: TypeAlias = str | bool | int | float | Decimal
MISSING_TYPES = {"NAType", "NaTType"}
"""Types of pandas by name, since it need not be installed."""


def values(table: Table, name: str, readable: Mapping[str, str]) -> list[Value | None]:
    """A column's values, with None for a missing one.

    Raises policy_column, data_column_missing if there is no such column, and data_column_type.
    """
    cells = [value if type(value) is str else _plain(value) for value in table.column(name, readable)]
    foreign = [row for row, value in enumerate(cells) if _foreign(value) is not None]
    if foreign:
        row, advice = foreign[0], "write text, a number or a truth value there, or name another column"
        detail = f"{table.place(row)}: column {readable[name]!r} ({name}) holds {_foreign(cells[row])}; {advice}"
        raise DataError("data_column_type", detail, column=name, count=len(foreign), of=table.rows)
    return cells


def texts(table: Table, name: str, readable: Mapping[str, str]) -> list[str]:
    """A column as text. Raises as `values` does, and data_column_missing also for a missing value."""
    cells = values(table, name, readable)
    refuse_missing(table, [name], [row for row, value in enumerate(cells) if value is None])
    return [str(value) for value in cells]


def rows_of_text(
    table: Table, names: Sequence[str], readable: Mapping[str, str], *, every: bool = False
) -> list[dict[str, str]]:
    """Text by column, row by row; empty for a missing value, unless `every` column is required.

    Raises as `values` does, and data_column_missing also for rows without any value (`every`: with a missing one).
    """
    read = texts if every else values
    columns = {name: read(table, name, readable) for name in names}
    rows = [{name: column[row] for name, column in columns.items()} for row in range(table.rows)]
    bare = [number for number, row in enumerate(rows) if row and all(value is None for value in row.values())]
    refuse_missing(table, names, bare)
    return [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]


def refuse_missing(table: Table, columns: Sequence[str], rows: Sequence[int]) -> None:
    """Raises data_column_missing if `rows`, the rows without a value in these columns, is not empty."""
    if rows:
        names = ", ".join(map(repr, columns))
        detail = f"{table.place(rows[0])}: no value for {names}; fill it in, or remove the row"
        raise DataError("data_column_missing", detail, column=columns[0], count=len(rows), of=table.rows)


def refuse_empty(table: Table, columns: Sequence[str], tokens: Iterable[int], problem: str) -> None:
    """Raises data_text_empty if a row has no tokens. `tokens`: their number in the text of `columns`, row by row."""
    empty = [row for row, count in enumerate(tokens) if count == 0]
    if empty:
        detail = f"{table.place(empty[0])}: {problem} ({', '.join(columns)}); fill it in, or remove the row"
        column = next(iter(columns), None)
        raise DataError("data_text_empty", detail, column=column, count=len(empty), of=table.rows)


def without_values(columns: Sequence[Sequence[Any]]) -> bool:
    """Whether no row has a value in a column except blank text. The column may come in several parts."""
    cells = (_plain(value) for column in columns for value in column)
    return all(value is None or (isinstance(value, str) and not value.strip()) for value in cells)


def _plain(value: Any) -> Any:
    """The value with numpy's scalars as Python's, and None for any representation of a missing value."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Decimal) and value.is_nan():
        return None
    return None if type(value).__name__ in MISSING_TYPES else value


def _foreign(value: Any) -> str | None:
    """Description of a value that is neither text, number nor truth value, or None."""
    if isinstance(value, str):
        return None if value.isascii() or _is_encodable(value) else "half of a character (a lone surrogate)"
    return None if value is None or isinstance(value, Value) else f"a value of type {type(value).__name__}"


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
