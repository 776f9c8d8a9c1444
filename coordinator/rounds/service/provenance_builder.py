"""Provenance of an adapter, and the inputs for aggregating its rounds again."""

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
from coordinator.rounds.service import inputs

_DEFINITION = ("task", "base_model", "trainable", "algorithm", "algorithm_revision", "config")


def provenance_of(session: Session, federation: Federation, until: Round) -> Provenance:
    """The updates, rounds and keys that the adapter of this round was made from."""
    updates: dict[tuple[str, int], list[dict[str, Any]]] = {}
    omissions: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for kind, number, ordinal, job in repository.updates_until(session, until):
        if job.problem is None:
            updates.setdefault((kind, number), []).append(_update(ordinal, job))
        else:
            omission = {"ordinal": ordinal, "digest": job.update_digest, "reason": job.problem["code"]}
            omissions.setdefault((kind, number), []).append(omission)
    rows = repository.aggregated_until(session, until)
    key_ids = {update["key_id"] for row in rows for update in updates.get((row.kind, row.number), [])}
    return build_chain(
        Head.model_validate(
            {
                "format": FORMAT,
                "federation": {"id": federation.id, "name": federation.name, "seed": federation.seed},
                "definition": {name: federation.definition[name] for name in _DEFINITION},
                "base_weights_digest": (federation.model_facts or {}).get("weights_digest"),
            }
        ),
        [_round_entry(row, *(of.get((row.kind, row.number), []) for of in (updates, omissions))) for row in rows],
        repository.public_keys(session, key_ids - {None}),
    )


def provenance(session: Session, federation: Federation, until: Round) -> bytes:
    """`provenance.json` of this round's adapter."""
    return provenance_of(session, federation, until).model_dump_json(indent=2).encode() + b"\n"


def signature(session: Session, federation: Federation, until: Round) -> str | None:
    """The coordinator's signature over this round's adapter and its provenance. None without a key."""
    content = provenance(session, federation, until)
    files = {name: file["digest"] for name, file in (until.adapter or {})["files"].items()}
    digests = files | {FILE: "sha256:" + hashlib.sha256(content).hexdigest()}
    return signing.sign(f"{federation.id}-round-{until.number}", digests)


def _update(ordinal: int, job: Job) -> dict[str, Any]:
    submission = job.submission or {}
    facts: dict[str, Any] = submission["update"]
    return {
        "ordinal": ordinal,
        "job_id": job.id,
        "digest": job.update_digest,
        "weight": facts["weight"],
        "examples": facts["examples"],
        "environment": submission["environment"],
        "key_id": job.key_id,
        "signature": facts.get("signature"),
    }


def _round_entry(round_: Round, updates: list[dict[str, Any]], omissions: list[dict[str, Any]]) -> dict[str, Any]:
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


def repeatable(session: Session, document: Provenance) -> list[tuple[RoundRecord, AggregateInput]]:
    """The rounds of a document whose updates and states are all still stored, each with its input, in order.

    Raises ProvenanceInvalid if this coordinator recorded something else.
    """
    federation_id = document.federation.id
    federation = session.get(Federation, federation_id)
    until = repository.round_with_adapter(session, federation_id, document.rounds[-1].number)
    if federation is None or until is None:
        raise ProvenanceInvalid(
            f"federation {federation_id}", "this coordinator has no such federation with that round"
        )
    _check_same(document, provenance_of(session, federation, until))
    rounds = []
    for row, entry in zip(repository.aggregated_until(session, until), document.rounds, strict=True):
        aggregation = inputs.aggregate_input(session, federation, row, row.notes or {})
        if row.notes is not None and _is_stored(entry, aggregation):
            rounds.append((entry, aggregation))
    return rounds


def _check_same(document: Provenance, own: Provenance) -> None:
    pairs = [(name, getattr(document, name), getattr(own, name)) for name in Head.model_fields]
    pairs += [(entry.name, entry, own_entry) for entry, own_entry in zip(document.rounds, own.rounds, strict=False)]
    for name, one, other in [*pairs, (FILE, document, own)]:
        if one != other:
            raise ProvenanceInvalid(name, "is not what this coordinator recorded")


def _is_stored(entry: RoundRecord, aggregation: AggregateInput) -> bool:
    return all(artifacts.is_stored(digest) for digest in _digests_of(entry, aggregation))


def _digests_of(entry: RoundRecord, aggregation: AggregateInput) -> Iterator[str]:
    yield from (aggregation.state_digest, entry.state_digest)
    for update in aggregation.updates:
        yield from (update.digest, *([update.note_digest] if update.note_digest else []))
    yield from (file.digest for file in (entry.adapter.files.values() if entry.adapter else ()))
