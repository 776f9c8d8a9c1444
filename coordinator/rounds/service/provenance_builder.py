"""Where an adapter came from: told as its provenance, and as what it takes to aggregate its rounds again."""

import hashlib
from collections.abc import Iterator
from typing import Any

from sqlalchemy.orm import Session

from coordinator.artifacts import service as artifacts
from coordinator.models import Federation, Job, Round
from coordinator.provenance import signing
from coordinator.provenance.document import (
    FILE,
    FORMAT,
    Head,
    Provenance,
    ProvenanceInvalid,
    RoundRecord,
    build_chain,
)
from coordinator.rounds import repository
from coordinator.rounds.schemas import AggregateInput
from coordinator.rounds.service import claims

_DEFINITION = ("task", "base_model", "trainable", "algorithm", "algorithm_revision", "config")


def provenance_of(session: Session, federation: Federation, until: Round) -> Provenance:
    """What the adapter of this round was made of, and by what."""
    updates: dict[tuple[str, int], list[dict[str, Any]]] = {}
    omissions: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for kind, number, ordinal, job in repository.updates_until(session, until):
        if job.problem is None:
            updates.setdefault((kind, number), []).append(_update(ordinal, job))
        else:
            omission = {"ordinal": ordinal, "digest": job.update_digest, "reason": job.problem["code"]}
            omissions.setdefault((kind, number), []).append(omission)
    rows = repository.aggregated_until(session, until)
    used = {update["key_id"] for row in rows for update in updates.get((row.kind, row.number), [])}
    return build_chain(
        Head.model_validate(
            {
                "format": FORMAT,
                "federation": {"id": federation.id, "name": federation.name, "seed": federation.seed},
                "definition": {name: federation.definition[name] for name in _DEFINITION},
                "base_weights_digest": (federation.model_facts or {}).get("weights_digest"),
            }
        ),
        [_made(row, *(of.get((row.kind, row.number), []) for of in (updates, omissions))) for row in rows],
        repository.public_keys(session, used - {None}),
    )


def provenance(session: Session, federation: Federation, until: Round) -> bytes:
    """`provenance.json` of this round's adapter."""
    return provenance_of(session, federation, until).model_dump_json(indent=2).encode() + b"\n"


def signature(session: Session, federation: Federation, until: Round) -> str | None:
    """The coordinator's signature under this round's adapter and its provenance; None without a key."""
    told = provenance(session, federation, until)
    files = {name: file["digest"] for name, file in (until.adapter or {})["files"].items()}
    digests = files | {FILE: "sha256:" + hashlib.sha256(told).hexdigest()}
    return signing.sign(f"{federation.id}-round-{until.number}", digests)


def _update(ordinal: int, job: Job) -> dict[str, Any]:
    submission = job.submission or {}
    told: dict[str, Any] = submission["update"]
    return {
        "ordinal": ordinal,
        "job_id": job.id,
        "digest": job.update_digest,
        "weight": told["weight"],
        "examples": told["examples"],
        "environment": submission["environment"],
        "key_id": job.key_id,
        "signature": told.get("signature"),
    }


def _made(round_: Round, updates: list[dict[str, Any]], omissions: list[dict[str, Any]]) -> dict[str, Any]:
    names = (
        "kind",
        "number",
        "attempt",
        "start_digest",
        "state_digest",
        "adapter",
        "environment",
        "not_reproducible",
    )
    facts = {name: getattr(round_, name) for name in names}
    lists = {"updates": updates, "left_out": omissions}
    return {**facts, **{name: sorted(rows, key=lambda row: row["ordinal"]) for name, rows in lists.items()}}


def repeatable(session: Session, told: Provenance) -> list[tuple[RoundRecord, AggregateInput]]:
    """The told rounds whose updates and states are all kept here, with what they were aggregated from, in order.

    Raises ProvenanceInvalid if this coordinator recorded something else.
    """
    federation = session.get(Federation, told.federation.id)
    until = repository.adapted(session, told.federation.id, told.rounds[-1].number)
    if federation is None or until is None:
        raise ProvenanceInvalid(
            f"federation {told.federation.id}", "this coordinator has no such federation with that round"
        )
    _check_same(told, provenance_of(session, federation, until))
    rows = repository.aggregated_until(session, until)
    inputs = (claims.aggregate_input(session, federation, row, row.notes or {}) for row in rows)
    found = zip(rows, told.rounds, inputs, strict=True)
    return [(entry, given) for row, entry, given in found if row.notes is not None and _kept(entry, given)]


def _check_same(told: Provenance, own: Provenance) -> None:
    pairs = [(name, getattr(told, name), getattr(own, name)) for name in Head.model_fields]
    pairs += [(entry.name, entry, recorded) for entry, recorded in zip(told.rounds, own.rounds, strict=False)]
    for name, one, other in [*pairs, (FILE, told, own)]:
        if one != other:
            raise ProvenanceInvalid(name, "is not what this coordinator recorded")


def _kept(entry: RoundRecord, given: AggregateInput) -> bool:
    return all(artifacts.is_stored(digest) for digest in _needed(entry, given))


def _needed(entry: RoundRecord, given: AggregateInput) -> Iterator[str]:
    yield from (given.state_digest, entry.state_digest)
    for update in given.updates:
        yield from (update.digest, *([update.note_digest] if update.note_digest else []))
    yield from (file.digest for file in (entry.adapter.files.values() if entry.adapter else ()))
