"""Labels of rows: the class that a value names.

A label's name takes precedence over its index, for any type of value. A value that could be two of the labels is
neither.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import TypeAlias

from worker_agent.training.job_errors import DataError
from worker_agent.training.tables import Table
from worker_agent.training.values import Value, refuse_missing, values

Meaning: TypeAlias = tuple[str, bool | Decimal]
"""Meaning of a number or a truth value in any spelling; its first element distinguishes `1` from `true`."""

NO_VALUE = "(no value)"
_MAX_NUMBER = 64
_MAX_LISTED = 20
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,6})?")
_TRUTHS = {"true": True, "false": False}


class LabelNames:
    """The labels of a federation, in its order.

    A value matches the label with exactly its text. Otherwise it matches the only label with the same text in normal
    form C of Unicode, or else the only one without surrounding white space, or else the only one with the same number
    (`1.0` is `1`) or truth value (`TRUE` is `true`), or else the label at this index, if no label contains another
    number than its index.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = tuple(labels)
        self._exact = {label: index for index, label in enumerate(labels)}
        self._ways: tuple[tuple[Callable[[str], object], dict[object, int]], ...] = tuple(
            (way, _unique_keys(labels, way)) for way in (_normal, _without_spaces, _meaning)
        )
        self._uses_indices = all(_is_numbered(label, index) for index, label in enumerate(labels))

    def index(self, value: Value) -> int | None:
        """The label's index (0 …), or None for a value that matches no label, or two."""
        text = str(value)
        if text in self._exact:
            return self._exact[text]
        for way, labels in self._ways:
            if (key := way(text)) is not None and key in labels:
                return labels[key]
        return self._by_index(_meaning(text))

    def _by_index(self, meaning: Meaning | None) -> int | None:
        if not self._uses_indices or meaning is None or meaning[0] != "number":
            return None
        number = meaning[1]
        return int(number) if 0 <= number < len(self._labels) and number == int(number) else None

    def __str__(self) -> str:
        more = len(self._labels) - _MAX_LISTED
        names = ", ".join(self._labels[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
        return f"{names} (or an index below {len(self._labels)})" if self._uses_indices else names


def label_indices(table: Table, labels: Sequence[str], readable: Mapping[str, str]) -> list[int]:
    """The label column as indices into `labels`, as `LabelNames` finds them.

    Raises data_unknown_label, data_column_missing, data_column_type, policy_column.
    """
    cells, names = values(table, "label", readable), LabelNames(labels)
    # By type too, because a mapping treats 1, 1.0 and True as one key.
    index_by_cell = {(type(value), value): names.index(value) for value in cells if value is not None}
    indices = [None if value is None else index_by_cell[type(value), value] for value in cells]
    unknown = [row for row, index in enumerate(indices) if index is None]
    refuse_missing(table, ["label"], [row for row in unknown if _is_blank(cells[row])])
    if unknown:
        detail = f"{table.place(unknown[0])}: label {str(cells[unknown[0]])[:64]!r} is not one of: {names}"
        raise DataError("data_unknown_label", detail, column="label", count=len(unknown), of=table.rows)
    return [index for index in indices if index is not None]


def label_counts(
    tables: Sequence[Table], readable: Mapping[str, str], labels: Sequence[str] | None
) -> dict[str, int]:
    """Number of rows by label: by `labels` (raises as `label_indices` does), or else by spelling.

    Without `labels`, spellings of one label count together: whole floats as integers, text in normal form C without
    surrounding white space. Rows without a value are counted separately.
    """
    if labels is not None:
        counts = Counter(index for table in tables for index in label_indices(table, labels, readable))
        return {label: counts[index] for index, label in enumerate(labels)}
    if not all(readable.get("label") in table.columns for table in tables):
        return {}
    spellings = Counter(_spelling(value) for table in tables for value in values(table, "label", readable))
    return dict(sorted(spellings.items(), key=lambda item: (-item[1], item[0])))


def _unique_keys(labels: Sequence[str], way: Callable[[str], object]) -> dict[object, int]:
    """Index by key `way(label)`, for keys that only one label has."""
    keys = [way(label) for label in labels]
    counts = Counter(keys)
    return {one: index for index, one in enumerate(keys) if one is not None and counts[one] == 1}


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _without_spaces(text: str) -> str:
    return _normal(text).strip()


def _meaning(text: str) -> Meaning | None:
    """The number or truth value of a text, or None."""
    bare = text.strip()
    if bare.casefold() in _TRUTHS:
        return "truth", _TRUTHS[bare.casefold()]
    if len(bare) > _MAX_NUMBER or not _NUMBER.fullmatch(bare):
        return None
    try:
        return "number", Decimal(bare)
    except InvalidOperation:
        return None


def _is_numbered(label: str, index: int) -> bool:
    """Whether the label has no number except its index and is no truth value, so that an index is unambiguous."""
    meaning = _meaning(label)
    if meaning is not None:
        return False
    return all(int(digits) == index for digits in re.findall(r"\d+", label))


def _is_blank(value: Value | None) -> bool:
    return value is None or not str(value).strip()


def _spelling(value: Value | None) -> str:
    if value is None or _is_blank(value):
        return NO_VALUE
    if isinstance(value, bool | str):
        return _without_spaces(str(value))
    number = Decimal(str(value))
    return str(int(number)) if number.is_finite() and abs(number) < 10**18 and number == int(number) else str(value)
