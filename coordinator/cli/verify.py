"""Verification of a downloaded adapter against its provenance, with repeated aggregations where inputs are kept."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from coordinator.db.migration import at_head
from coordinator.db.sessions import reading
from coordinator.errors import ArtifactDamaged
from coordinator.provenance import document, signing
from coordinator.provenance.document import Provenance, RoundRecord
from coordinator.provenance.document import ProvenanceInvalid as ProvenanceInvalid
from coordinator.rounds.schemas import AggregateInput
from federated.digests import file_digest

_Folder = Path | zipfile.Path


def verify(adapter: Path, *, artifacts: bool, key: Path | None = None) -> Iterator[str]:
    """Yields a line for each check that passed. Raises ProvenanceInvalid at the first that fails.

    `artifacts`: also repeat aggregations, with the database and store of the adapter's coordinator. `key`: its
    public key.
    """
    try:
        folder = adapter if adapter.is_dir() else zipfile.Path(adapter)
        provenance = document.read(_content(folder))
        _check_files(folder, provenance)
    except zipfile.BadZipFile as error:
        raise ProvenanceInvalid(adapter.name, f"is neither a folder nor a whole zip: {error}") from None
    yield f"files: {len(provenance.adapter.files)} have the SHA-256 that the provenance names"
    yield f"signature of the coordinator: {_check_signature(folder, provenance, key)}"
    document.check(provenance)
    updates = sum(len(entry.updates) for entry in provenance.rounds)
    yield f"signatures: {updates} updates, signed with {len(provenance.keys)} keys"
    yield f"chain: {len(provenance.rounds)} rounds of {provenance.federation.id}, up to {provenance.digest}"
    if artifacts:
        yield from _repetitions(provenance)


def _content(folder: _Folder) -> bytes:
    file = folder / document.FILE
    if not file.is_file():
        raise ProvenanceInvalid(document.FILE, "is missing")
    return file.read_bytes()


def _check_files(folder: _Folder, provenance: Provenance) -> None:
    names = {file.name for file in folder.iterdir()}
    for name in sorted(names - provenance.adapter.files.keys() - {document.FILE, signing.FILE}):
        raise ProvenanceInvalid(f"file {name}", "is not in the provenance")
    for name, file in sorted(provenance.adapter.files.items()):
        if name not in names or not (folder / name).is_file():
            raise ProvenanceInvalid(f"file {name}", "is missing")
        if file_digest(folder / name) != file.digest:
            raise ProvenanceInvalid(f"file {name}", "has not the SHA-256 that the provenance names")


def _check_signature(folder: _Folder, provenance: Provenance, key: Path | None) -> str:
    file = folder / signing.FILE
    if key is None:
        return "not checked without its public key (--key)" if file.is_file() else "there is none"
    if not file.is_file():
        raise ProvenanceInvalid(signing.FILE, "is missing")
    digests = {name: file.digest for name, file in provenance.adapter.files.items()}
    try:
        signing.check(file.read_bytes(), digests | {document.FILE: file_digest(folder / document.FILE)}, key)
    except signing.SignatureInvalid as error:
        raise ProvenanceInvalid(signing.FILE, f"is not valid under {key.name}: {error}") from None
    return f"valid under {key.name}"


def _repetitions(provenance: Provenance) -> Iterator[str]:
    tolerance, rounds = _repeatable_rounds(provenance)
    if not rounds:
        yield "aggregated again: nothing, since updates or states of all rounds are no longer kept"
    for entry, inputs in rounds:
        yield f"aggregated again: {entry.name}, {_repeat(entry, inputs, tolerance)}"


def _repeatable_rounds(provenance: Provenance) -> tuple[float, list[tuple[RoundRecord, AggregateInput]]]:
    """The tolerance for another environment, and the rounds whose inputs are still kept."""
    from coordinator.rounds import service
    from federated import registry

    try:
        with reading() as session:
            if not at_head(session):
                raise ProvenanceInvalid("the database", "is not at this version's migrations")
            rounds = service.repeatable(session, provenance)
    except SQLAlchemyError as error:
        raise ProvenanceInvalid(
            "the database", f"is not here: {error.__class__.__name__}; run this on the coordinator"
        ) from None
    return registry.algorithm(str(provenance.definition["algorithm"])).repeat_tolerance, rounds


def _repeat(entry: RoundRecord, inputs: AggregateInput, tolerance: float) -> str:
    from coordinator.rounds import conductor

    files = entry.adapter.files if entry.adapter else {}
    digests = {conductor.STATE: entry.state_digest, **{name: file.digest for name, file in files.items()}}
    try:
        repetition = conductor.repeat(inputs, digests)
    except ArtifactDamaged as damage:
        raise ProvenanceInvalid(entry.name, damage.detail) from None
    if not repetition.differences:
        return "same bytes"
    name, largest = max(repetition.differences.items(), key=lambda pair: pair[1])
    difference = f"largest relative difference {largest:.3g} in {name}"
    if repetition.environment == entry.environment:
        reason = f"aggregated again in the same environment it has other bytes, {difference}"
        raise ProvenanceInvalid(entry.name, reason)
    if largest > tolerance:
        reason = f"aggregated again it differs, {difference}, at most {tolerance:g} is allowed"
        raise ProvenanceInvalid(entry.name, reason)
    return f"in another environment, {difference}, at most {tolerance:g} is allowed"
