"""All rows of a coordinator's database, kept so that they can be put back; what is on record stays as it is."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Table, delete, insert, select

from coordinator.db.sessions import reading, writing
from coordinator.models import AuditChain, AuditEntry, Base

APPEND_ONLY = {AuditChain.__tablename__, AuditEntry.__tablename__}

Alike = list[list[dict[str, Any]]]
"""Rows of a table; those with the same columns are together."""


class KeptRows:
    """The rows as they are when this is made."""

    def __init__(self) -> None:
        with reading() as session:
            self._of = {table.name: _alike(session.execute(select(table)).mappings()) for table in _changing()}

    def put_back(self) -> None:
        """Everything is as it was, but for what is on record."""
        with writing() as session:
            for table in reversed(_changing()):
                session.execute(delete(table))
            for table in _changing():
                for alike in self._of[table.name]:
                    session.execute(insert(table), alike)


def _changing() -> list[Table]:
    """Tables in an order in which they can be filled. What is on record can be neither changed nor deleted."""
    return [table for table in Base.metadata.sorted_tables if table.name not in APPEND_ONLY]


def _alike(rows: Iterable[Mapping[str, Any]]) -> Alike:
    """The rows without what is null in them: a JSON column would be given JSON's null instead."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        full = {name: value for name, value in row.items() if value is not None}
        groups.setdefault(tuple(full), []).append(full)
    return list(groups.values())
