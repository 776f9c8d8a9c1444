"""Holds a downloaded adapter against its provenance, and its last rounds against what they were aggregated from."""

import hashlib
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

_Folder = Path | zipfile.Path


def verify(adapter: Path, *, artifacts: bool, key: Path | None = None) -> Iterator[str]:
    """What was checked, line by line. Raises ProvenanceInvalid at the first thing that does not hold.

    `artifacts`: the database and the store of the coordinator that made it are at hand. `key`: its public key.
    """
    try:
        folder = adapter if adapter.is_dir() else zipfile.Path(adapter)
        told = document.read(_content(folder))
        _check_files(folder, told)
    except zipfile.BadZipFile as error:
        raise ProvenanceInvalid(adapter.name, f"is neither a folder nor a whole zip: {error}") from None
    yield f"files: {len(told.adapter.files)} have the SHA-256 that the provenance names"
    yield f"signature of the coordinator: {_check_signature(folder, told, key)}"
    document.check(told)
    updates = sum(len(entry.updates) for entry in told.rounds)
    yield f"signatures: {updates} updates, signed with {len(told.keys)} keys"
    yield f"chain: {len(told.rounds)} rounds of {told.federation.id}, up to {told.digest}"
    if artifacts:
        yield from _repeated(told)


def _content(folder: _Folder) -> bytes:
    file = folder / document.FILE
    if not file.is_file():
        raise ProvenanceInvalid(document.FILE, "is missing")
    return file.read_bytes()


def _check_files(folder: _Folder, told: Provenance) -> None:
    there = {file.name for file in folder.iterdir()}
    for name in sorted(there - told.adapter.files.keys() - {document.FILE, signing.FILE}):
        raise ProvenanceInvalid(f"file {name}", "is not in the provenance")
    for name, file in sorted(told.adapter.files.items()):
        if name not in there or not (folder / name).is_file():
            raise ProvenanceInvalid(f"file {name}", "is missing")
        if _digest(folder / name) != file.digest:
            raise ProvenanceInvalid(f"file {name}", "has not the SHA-256 that the provenance names")


def _check_signature(folder: _Folder, told: Provenance, key: Path | None) -> str:
    file = folder / signing.FILE
    if key is None:
        return "not checked without its public key (--key)" if file.is_file() else "there is none"
    if not file.is_file():
        raise ProvenanceInvalid(signing.FILE, "is missing")
    digests = {name: file.digest for name, file in told.adapter.files.items()}
    try:
        signing.check(file.read_bytes(), digests | {document.FILE: _digest(folder / document.FILE)}, key)
    except signing.SignatureInvalid as wrong:
        raise ProvenanceInvalid(signing.FILE, f"does not hold under {key.name}: {wrong}") from None
    return f"holds under {key.name}"


def _digest(file: _Folder) -> str:
    with file.open("rb") as content:
        digest = hashlib.sha256()
        while piece := content.read(1 << 20):
            digest.update(piece)
    return "sha256:" + digest.hexdigest()


def _repeated(told: Provenance) -> Iterator[str]:
    tolerance, kept = _kept(told)
    if not kept:
        yield "aggregated again: nothing, since updates or states of all rounds are no longer kept"
    for entry, given in kept:
        yield f"aggregated again: {entry.name}, {_repeat(entry, given, tolerance)}"


def _kept(told: Provenance) -> tuple[float, list[tuple[RoundRecord, AggregateInput]]]:
    """What can be aggregated again, and how far it may be off in another environment."""
    from coordinator.rounds import service
    from federated import registry

    try:
        with reading() as session:
            if not at_head(session):
                raise ProvenanceInvalid("the database", "is not at this version's migrations")
            kept = service.repeatable(session, told)
    except SQLAlchemyError as error:
        raise ProvenanceInvalid(
            "the database", f"is not here: {error.__class__.__name__}; run this on the coordinator"
        ) from None
    return registry.algorithm(str(told.definition["algorithm"])).repeat_tolerance, kept


def _repeat(entry: RoundRecord, given: AggregateInput, tolerance: float) -> str:
    from coordinator.rounds import conductor

    files = entry.adapter.files if entry.adapter else {}
    kept = {conductor.STATE: entry.state_digest, **{name: file.digest for name, file in files.items()}}
    try:
        repetition = conductor.repeat(given, kept)
    except ArtifactDamaged as damage:
        raise ProvenanceInvalid(entry.name, damage.detail) from None
    if not repetition.differences:
        return "same bytes"
    name, largest = max(repetition.differences.items(), key=lambda pair: pair[1])
    told = f"largest relative difference {largest:.3g} in {name}"
    if repetition.environment == entry.environment:
        raise ProvenanceInvalid(entry.name, f"aggregated again in the same environment it has other bytes, {told}")
    if largest > tolerance:
        raise ProvenanceInvalid(entry.name, f"aggregated again it differs, {told}, at most {tolerance:g} is allowed")
    return f"in another environment, {told}, at most {tolerance:g} is allowed"
