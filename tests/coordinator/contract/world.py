"""An installation with something of everything in it, and callers of every role. `building` makes it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.kept_rows import KeptRows
from tests.support.service import Organization, Service

CHUNK = b"the only chunk of an upload"
ROLES = (
    "anonymous", "revoked_key", "revoked_worker", "admin", "owner", "operator", "viewer", "worker",
    "member", "member_worker", "stranger", "strange_worker",
)  # fmt: skip
"""`owner`, `operator`, `viewer` and `worker` are of the organization that has everything; a member takes part in one
federation of it and is invited to another; a stranger takes part in nothing."""
HIDDEN_FROM = {
    **dict.fromkeys(("anonymous", "revoked_key", "revoked_worker", "stranger", "strange_worker"), ("home", "member")),
    **dict.fromkeys(("member", "member_worker"), ("home",)),
}
"""Role -> organizations of which it learns nothing that concerns them alone."""

Token = Callable[[], str]


@dataclass
class World:
    """`ids`: a federation's state -> path parameter -> what there is of it.

    `bodies`: operation -> what its request says in this world; `bodies_of`: operation and role -> what that role says
    alone; `conditions`: operation -> the tag it needs, if `*` is none; `private`: organization -> ids that concern it
    alone.
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
    rows: KeptRows | None = None

    def authorization(self, role: str) -> dict[str, str]:
        """The header with which this role asks."""
        return {} if role == "anonymous" else {"Authorization": f"Bearer {self.tokens[role]()}"}

    def keep(self) -> "World":
        """The state to which `restore` comes back."""
        self._put_chunk()
        self.rows = KeptRows()
        return self

    def restore(self) -> None:
        """Everything is as it was, but for what is on record."""
        assert self.rows is not None
        self.rows.put_back()
        self._put_chunk()

    def _put_chunk(self) -> None:
        path = f"/v1/artifacts/uploads/{self.ids['running']['upload_id']}/chunks/0"
        self.service.anonymous.put(path, content=CHUNK, headers=self.authorization("owner")).raise_for_status()
