"""Database rows for tests: organizations, workers, federations, rounds and clients, as the API would write them."""

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.artifacts import service as artifacts
from coordinator.clients import service as clients
from coordinator.db.sessions import reading, utcnow
from coordinator.models import Base, Client, Event, Federation, Invitation, Organization, Round, Worker
from coordinator.models.base import new_id
from federated.payloads.header import DTYPE_BYTES
from federated.protocol import Capabilities, DatasetFacts

CAPABILITIES = Capabilities(
    algorithms={"fedavg": 1}, datasets=(DatasetFacts(name="tickets"), DatasetFacts(name="notes", task="causal_lm"))
)
EXPECTS = {"a.lora_A.weight": {"dtype": "F32", "shape": [2, 3]}, "a.lora_B.weight": {"dtype": "F32", "shape": [3, 2]}}


def definition(**changes: Any) -> dict[str, Any]:
    return {
        "task": {"task": "sequence_classification", "labels": ["no", "yes"], "metrics": ["accuracy"]},
        "base_model": {"id": "tiny", "revision": None, "weights_sha256": None},
        "trainable": {"kind": "lora", "r": 2, "target_modules": ["query", "value"]},
        "algorithm": "fedavg",
        "algorithm_revision": 1,
        "config": {},
        "rounds": 3,
        "clients_per_round": 2,
        "over_selection": 0,
        "round_deadline_seconds": 3600.0,
        "prepare_deadline_seconds": 3600.0,
        "evaluation_deadline_seconds": 600.0,
        "max_round_retries": 3,
        "lease_seconds": 60.0,
        "max_attempts": 3,
        "min_clients": 2,
        "wait_for_clients_seconds": 600.0,
        "evaluation": {"every": 1, "who": "cohort"},
        "retention": {"keep_updates_rounds": 2, "keep_states_rounds": 10},
    } | changes


def organization(session: Session, name: str = "owner") -> Organization:
    row = Organization(id=new_id("org"), name=name, created_at=utcnow())
    session.add(row)
    session.flush()
    return row


def worker(session: Session, owner: Organization, *, heard_at: datetime | None = None, **fields: Any) -> Worker:
    identity = new_id("wkr")
    row = Worker(
        id=identity,
        organization_id=owner.id,
        name=identity,
        public_key=identity,
        capabilities=CAPABILITIES.model_copy(update=fields).model_dump(mode="json"),
        last_seen_at=heard_at or utcnow(),
        created_at=utcnow(),
    )
    session.add(row)
    session.flush()
    return row


def federation(session: Session, organization_id: str, state: str = "running", **changes: Any) -> Federation:
    row = Federation(
        id=new_id("fed"),
        organization_id=organization_id,
        name="tickets everywhere",
        state=state,
        definition=definition(**changes),
        seed=7,
        next_ordinal=0,
        created_at=utcnow(),
    )
    session.add(row)
    session.flush()
    clients.admit_owner(session, row, utcnow())
    session.flush()
    return row


def member(session: Session, joined: Federation, organization_id: str, state: str = "accepted") -> None:
    session.add(
        Invitation(federation_id=joined.id, organization_id=organization_id, state=state, created_at=utcnow())
    )
    session.flush()


def client(session: Session, joined: Federation, of: Worker, **fields: Any) -> Client:
    given = {"state": "ready", "dataset": "tickets", "examples": 10, "evaluation_examples": 5, "settings": {}}
    row = Client(
        id=new_id("cli"),
        federation_id=joined.id,
        organization_id=of.organization_id,
        worker_id=of.id,
        name=of.name,
        ordinal=joined.next_ordinal,
        created_at=utcnow(),
        **(given | fields),
    )
    joined.next_ordinal += 1
    session.add(row)
    session.flush()
    return row


def open_round(session: Session, of: Federation, **fields: Any) -> Round:
    given = {"kind": "train", "number": 1, "attempt": 1, "state": "collecting"}
    row = Round(
        id=new_id("rnd"),
        federation_id=of.id,
        sequence=count(session, Round) + 1,
        metrics={},
        seconds={},
        not_reproducible=[],
        opened_at=utcnow(),
        **(given | fields),
    )
    session.add(row)
    session.flush()
    return row


def safetensors(tensors: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any] | None = None) -> bytes:
    """A file with zeros of these dtypes and shapes."""
    position = 0
    header: dict[str, Any] = {"__metadata__": {"facts": json.dumps(facts or {})}}
    for name, row in sorted(tensors.items()):
        end = position + math.prod(row["shape"]) * DTYPE_BYTES[row["dtype"]]
        header[name] = {"dtype": row["dtype"], "shape": row["shape"], "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(position)


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def instruction(session: Session, folder: Path, holder: str, expects: Mapping[str, Any] = EXPECTS) -> str:
    """The digest of a stored instruction that expects an update of this form."""
    path = folder / "instruction.safetensors"
    path.write_bytes(safetensors({}, {"expects": dict(expects)}))
    stored = artifacts.put_file(path)
    artifacts.record(session, stored, holder, "instruction")
    return stored.digest


def everything() -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables: two of these are equal if nothing changed between them."""
    with reading() as session:
        tables = Base.metadata.sorted_tables
        return {table.name: [tuple(row) for row in session.execute(select(table))] for table in tables}


def events_of(federation_id: str) -> list[str]:
    """Types of the federation's events, in order."""
    with reading() as session:
        statement = select(Event.type).where(Event.federation_id == federation_id).order_by(Event.number)
        return list(session.scalars(statement))


def count(session: Session, model: type[Base]) -> int:
    return session.scalar(select(func.count()).select_from(model)) or 0


def get_federation(session: Session, federation_id: str) -> Federation:
    return session.get_one(Federation, federation_id)


def invitation_state(session: Session, federation_id: str, organization_id: str) -> str:
    return session.get_one(Invitation, (federation_id, organization_id)).state
