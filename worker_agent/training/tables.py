"""Tables: rows stored as columns, with the place of each row in its file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from worker_agent.training.job_errors import DataError


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of equal length. `name` is for error messages. A missing value is None.

    `numbers` are the rows' numbers in their file, counted in `unit` ("rows.csv line"); None: row i has number i.
    `valueless` are the columns without a value in any row of the whole data set, including held-out rows.
    """

    name: str
    columns: Mapping[str, Sequence[Any]]
    numbers: Sequence[int] | None = None
    unit: str = "row"
    valueless: frozenset[str] = frozenset()

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def place(self, row: int) -> str:
        """The place of a row for its owner: data set, file and line."""
        return f"{self.name}, {self.unit} {row if self.numbers is None else self.numbers[row]}"

    def column(self, name: str, readable: Mapping[str, str]) -> Sequence[Any]:
        """The column that `readable` maps `name` to.

        Raises policy_column if it is not readable, data_column_missing if it does not exist.
        """
        if name not in readable:
            names = ", ".join(sorted(readable)) or "none"
            detail = f"{self.name}: column {name!r} is not among those that may be read: {names}"
            raise DataError("policy_column", f"{detail}; its owner can list it in `columns`", column=name)
        actual = readable[name]
        if actual not in self.columns:
            present = ", ".join(sorted(self.columns)) or "none"
            detail = f"{self.name} has no column {actual!r} ({name}); it has: {present}"
            raise DataError("data_column_missing", detail, column=name)
        return self.columns[actual]

    def take(self, rows: Sequence[int]) -> "Table":
        """The table of these rows, in this order."""
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        numbers = list(rows) if self.numbers is None else [self.numbers[row] for row in rows]
        return replace(self, columns=columns, numbers=numbers)
