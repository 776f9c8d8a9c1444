"""Troubles that users of other systems of this kind had, each with our answer and the tests that hold it.

A letter says what it is about: P privacy, D data, M models, L adapters and merging, N networks and names, C clients
and rounds, X hostile updates, A what others open.
"""

from collections.abc import Mapping
from typing import NamedTuple

from tests.troubles import rows_of_models, rows_of_services


class Row(NamedTuple):
    """A trouble's answer here, and the tests that fail if it comes back (`path::Class::test`)."""

    answer: str
    tests: tuple[str, ...]


ROWS: Mapping[str, Row] = {
    name: Row(*row) for name, row in sorted({**rows_of_models.ROWS, **rows_of_services.ROWS}.items())
}
