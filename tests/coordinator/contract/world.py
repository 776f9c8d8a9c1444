"""An installation with something of everything in it, and callers of every role. `building` makes it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Table, delete, insert, select

from coordinator.database import reading, writing
from coordinator.models import AuditChain, AuditEntry, Base
from tests.support.service import Organization, Service

CHUNK = b"the only chunk of an upload"
ROLES = (
    "anonymous", "revoked_key", "revoked_worker", "admin", "owner", "operator", "viewer", "worker",
    "member", "member_worker", "stranger", "strange_worker",
)  # fmt: skip
"""`owner`, `operator`, `viewer` and `worker` are of the organisation that has everything; a member takes part in one
federation of it and is invited to another; a stranger takes part in nothing."""
APPEND_ONLY = {AuditChain.__tablename__, AuditEntry.__tablename__}

Rows = Mapping[str, list[list[dict[str, Any]]]]
Token = Callable[[], str]


@dataclass
class World:
    """`ids`: a federation's state -> path parameter -> what there is of it.

    `bodies`: operation -> what its request says in this world; `bodies_of`: operation and role -> what that role says
    alone; `conditions`: operation -> the tag it needs, if
    `*` is none; `private`: organisation -> ids that concern it alone.
    """

    service: Service
    home: Organization
    member: Organization
    stranger: Organization
    tokens: Mapping[str, Token]
    ids: Mapping[str, Mapping[str, str]]
    bodies: Mapping[str, Mapping[str, Any]]
    conditions: Mapping[str, str]
    private: Mapping[str, set[str]]
    bodies_of: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    rows: Rows = field(default_factory=dict)

    def authorization(self, role: str) -> dict[str, str]:
        """The header with which this role asks."""
        return {} if role == "anonymous" else {"Authorization": f"Bearer {self.tokens[role]()}"}

    def keep(self) -> "World":
        """The state to which `restore` comes back."""
        self._put_chunk()
        self.rows = _rows()
        return self

    def restore(self) -> None:
        """Everything is as it was, but for what is on record."""
        with writing() as session:
            for table in reversed(_changing()):
                session.execute(delete(table))
            for table in _changing():
                for alike in self.rows[table.name]:
                    session.execute(insert(table), alike)
        self._put_chunk()

    def _put_chunk(self) -> None:
        path = f"/v1/artifacts/uploads/{self.ids['running']['upload_id']}/chunks/0"
        self.service.anonymous.put(path, content=CHUNK, headers=self.authorization("owner")).raise_for_status()


def _changing() -> list[Table]:
    """Tables in an order in which they can be filled. What is on record can be neither changed nor deleted."""
    return [table for table in Base.metadata.sorted_tables if table.name not in APPEND_ONLY]


def _rows() -> Rows:
    """All rows. What is null is left out: a JSON column would be given JSON's null instead."""
    with reading() as session:
        return {table.name: _alike(session.execute(select(table)).mappings()) for table in _changing()}


def _alike(rows: Iterable[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows, those with the same columns together."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        told = {name: value for name, value in row.items() if value is not None}
        groups.setdefault(tuple(told), []).append(told)
    return list(groups.values())
