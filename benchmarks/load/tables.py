"""Database rows of a coordinator that has been in use: workers, federations, their clients, rounds and jobs.

They are inserted directly through the coordinator's models, as enrolling ten thousand workers over HTTP would measure
something else. The `in_use` federations are paused, so that the background opens no round of its own. The others are
completed and have past rounds and jobs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sqlalchemy import insert, text
from sqlalchemy.orm import Session

from coordinator.db.engines import make_engine
from coordinator.models import Artifact, Base, Client, Federation, Job, Round, Worker, WorkerKey
from coordinator.models.base import new_id
from federated.protocol import Capabilities
from federated.signed_statement import key_id
from worker_agent.coordinator_api.identity import public_key

COHORT = 10
"""Clients of a federation, and jobs of a round."""
INSTRUCTION = "sha256:" + 64 * "0"
_PAST_ROUNDS = 3
_ROWS_AT_ONCE = 2_000
_INSTRUCTION_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers of rows. `agents`: how many workers, from the first, take part in the `in_use` federations."""

    workers: int
    federations: int
    agents: int

    @property
    def in_use(self) -> int:
        """Number of federations whose clients are simulated agents."""
        return min(self.federations, max(1, self.agents // COHORT))


@dataclass(frozen=True, slots=True)
class SimulatedWorker:
    """An enrolled worker, and its private key as PEM."""

    id: str
    key: str


@dataclass(frozen=True, slots=True)
class Owner:
    """The organization that owns all rows, and a definition that the coordinator has checked."""

    organization_id: str
    definition: dict[str, Any]
    seed: int


def owner_of(url: str, federation_id: str) -> Owner:
    """Organization, definition and seed of a federation that was created over HTTP."""
    with Session(make_engine(url)) as session:
        row = session.get_one(Federation, federation_id)
        return Owner(row.organization_id, row.definition, row.seed)


def fill(url: str, owner: Owner, sizes: Sizes) -> list[SimulatedWorker]:
    """Insert all rows. Returns the agents."""
    now = datetime.now(UTC)
    engine = make_engine(url)
    with Session(engine) as session:
        _insert(session, Artifact, [_instruction(now)])
        workers = list(_workers(session, owner, sizes, now))
        ids, agents = [worker.id for worker in workers], [worker.id for worker in workers[: sizes.agents]]
        for place in range(sizes.federations):
            in_use = place < sizes.in_use
            among, first = (agents, place * COHORT) if in_use else (ids, place * COHORT)
            worker_ids = [among[(first + ordinal) % len(among)] for ordinal in range(min(COHORT, len(among)))]
            _federation(session, owner, f"federation {place}", worker_ids, now, in_use=in_use)
        session.commit()
        if engine.dialect.name == "postgresql":
            session.execute(text("ANALYZE"))  # as autovacuum does in time
            session.commit()
    engine.dispose()
    return workers[: sizes.agents]


def capabilities(definition: dict[str, Any]) -> dict[str, Any]:
    """Capabilities of an agent with one slot, as JSON, sufficient for the definition."""
    algorithms = {definition["algorithm"]: definition["algorithm_revision"]}
    return Capabilities(agent_version="0", algorithms=algorithms).model_dump(mode="json")


def _instruction(now: datetime) -> dict[str, Any]:
    return {"digest": INSTRUCTION, "size_bytes": _INSTRUCTION_BYTES, "created_at": now}


def _workers(session: Session, owner: Owner, sizes: Sizes, now: datetime) -> Iterable[SimulatedWorker]:
    capability_fields = capabilities(owner.definition)
    rows: list[dict[str, Any]] = []
    keys: list[dict[str, Any]] = []
    workers = []
    for place in range(sizes.workers):
        key = Ed25519PrivateKey.generate()
        worker_id, public = new_id("wkr"), public_key(key)
        common: dict[str, Any] = {"public_key": public, "created_at": now}
        row = {"id": worker_id, "organization_id": owner.organization_id, "name": f"worker {place}", **common}
        rows.append({**row, "capabilities": capability_fields, "last_seen_at": now})
        keys.append({"id": key_id(public), "worker_id": worker_id, **common})
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) if place < sizes.agents else b""
        workers.append(SimulatedWorker(worker_id, pem.decode()))
    _insert(session, Worker, rows)
    _insert(session, WorkerKey, keys)
    return workers


def _federation(
    session: Session, owner: Owner, name: str, worker_ids: Sequence[str], now: datetime, *, in_use: bool
) -> None:
    federation_id = new_id("fed")
    row = {
        "id": federation_id, "organization_id": owner.organization_id, "name": name,
        "state": "paused" if in_use else "completed", "definition": owner.definition, "seed": owner.seed,
        "next_ordinal": len(worker_ids), "created_at": now, "started_at": now, "waiting_since": now,
        "ended_at": None if in_use else now,
    }  # fmt: skip
    clients = [
        {
            "id": new_id("cli"), "federation_id": federation_id, "organization_id": owner.organization_id,
            "worker_id": worker_id, "name": f"client {ordinal}", "dataset": "messages", "ordinal": ordinal,
            "state": "ready", "settings": {}, "examples": 100, "evaluation_examples": 20, "created_at": now,
        }
        for ordinal, worker_id in enumerate(worker_ids)
    ]  # fmt: skip
    _insert(session, Federation, [row])
    _insert(session, Client, clients)
    if not in_use:
        _past(session, federation_id, clients, now)


def _past(session: Session, federation_id: str, clients: Sequence[dict[str, Any]], now: datetime) -> None:
    rounds = [round_row(federation_id, number, len(clients), "closed", now) for number in range(1, _PAST_ROUNDS + 1)]
    jobs = [
        {
            "id": new_id("job"), "federation_id": federation_id, "round_id": row["id"], "client_id": client["id"],
            "worker_id": client["worker_id"], "kind": "train", "state": "accepted", "seed": 0, "lease_seconds": 60.0,
            "offered_number": client["ordinal"], "submitted_number": client["ordinal"], "offered_at": now,
            "leased_at": now, "submitted_at": now, "ended_at": now,
        }
        for row in rounds
        for client in clients
    ]  # fmt: skip
    _insert(session, Round, rounds)
    _insert(session, Job, jobs)


def round_row(federation_id: str, number: int, clients: int, state: str, now: datetime) -> dict[str, Any]:
    """The row of a round that has its state and is evaluating or closed."""
    return {
        "id": new_id("rnd"), "federation_id": federation_id, "kind": "train", "number": number, "attempt": 1,
        "sequence": number, "state": state, "cohort": list(range(clients)), "planned": True,
        "evaluation_planned": True, "registered": clients, "start_digest": INSTRUCTION, "state_digest": INSTRUCTION,
        "metrics": {}, "seconds": {}, "not_reproducible": [], "opened_at": now, "collecting_at": now,
        "aggregated_at": now, "closed_at": now if state == "closed" else None,
    }  # fmt: skip


def _insert(session: Session, model: type[Base], rows: Sequence[dict[str, Any]]) -> None:
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        session.execute(insert(model), rows[start : start + _ROWS_AT_ONCE])
