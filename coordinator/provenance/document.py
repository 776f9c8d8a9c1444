"""`provenance.json`: the origin of an adapter as a verifiable hash chain.

    head (federation, definition, weights) <- round 1 <- round 2 <- … <- digest

The entry of a round contains the digest of the preceding link (`previous`), the state it started from, the state and
adapter it produced, and every update with its worker's signature. Each round starts from the state of the round
before it. The document's `digest` is the hash of the last entry's canonical JSON and thereby fixes the whole chain.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from coordinator.auth.credentials import is_signature_valid
from federated.signed_statement import Statement, canonical_json, key_id

FORMAT = "fedloom provenance 1"
FILE = "provenance.json"


class ProvenanceInvalid(Exception):
    """The provenance fails a check; the text names the first link that does."""

    def __init__(self, link: str, reason: str) -> None:
        super().__init__(f"{link}: {reason}")
        self.link = link


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def canonical_digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return digest_of(self.model_dump(mode="json"))


class FileRecord(_Record):
    digest: str
    size_bytes: int


class AdapterRecord(_Record):
    kind: str
    files: dict[str, FileRecord]


class UpdateRecord(_Record):
    """An accepted update. `signature` is over its `Statement`, by the key `key_id`."""

    ordinal: int
    job_id: str
    digest: str
    weight: float
    examples: int
    environment: dict[str, str]
    key_id: str | None
    signature: str | None


class OmissionRecord(_Record):
    """An accepted update that was not aggregated, with the reason."""

    ordinal: int
    digest: str
    reason: str


class RoundRecord(_Record):
    """An aggregated round. A preparation round has no adapter. An empty `left_out` is omitted, so that documents
    written before this field existed keep their digests.
    """

    kind: str
    number: int
    attempt: int
    previous: str
    start_digest: str
    state_digest: str
    adapter: AdapterRecord | None
    environment: dict[str, Any]
    not_reproducible: list[str]
    updates: list[UpdateRecord]
    left_out: list[OmissionRecord] = []

    @model_serializer(mode="wrap")
    def _omit_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = serialize(self)
        return document if self.left_out else {name: document[name] for name in document if name != "left_out"}

    @property
    def name(self) -> str:
        """The round's name in reports."""
        return f"{self.kind} round {self.number}"


class FederationRecord(_Record):
    id: str
    name: str
    seed: int


class Head(_Record):
    """The facts common to all rounds, and the first link of the chain."""

    format: str
    federation: FederationRecord
    definition: dict[str, Any]
    base_weights_digest: str | None


class Provenance(Head):
    """The whole document. It names clients by ordinal only: an adapter travels further than their names should."""

    rounds: list[RoundRecord]
    keys: dict[str, str]
    adapter: AdapterRecord
    digest: str

    @property
    def head(self) -> Head:
        """The first link of the chain."""
        return Head(**{name: getattr(self, name) for name in Head.model_fields})

    def statement(self, entry: RoundRecord, update: UpdateRecord) -> Statement:
        """The statement that the worker signed."""
        return Statement(
            federation_id=self.federation.id,
            job_id=update.job_id,
            round_kind=entry.kind,
            round_number=entry.number,
            algorithm=str(self.definition.get("algorithm")),
            algorithm_revision=self.definition.get("algorithm_revision", 0),
            digest=update.digest,
            weight=update.weight,
            examples=update.examples,
        )


def digest_of(value: Any) -> str:
    """SHA-256 of the value's canonical JSON, as "sha256:" and hexadecimal digits."""
    return "sha256:" + hashlib.sha256(canonical_json(value)).hexdigest()


def build_chain(head: Head, rounds: Iterable[Mapping[str, Any]], keys: Mapping[str, str]) -> Provenance:
    """The document for these rounds, in order. Adds each round's `previous`. The last round made the adapter."""
    entries: list[RoundRecord] = []
    previous = head.canonical_digest()
    for facts in rounds:
        entries.append(RoundRecord.model_validate({**facts, "previous": previous}))
        previous = entries[-1].canonical_digest()
    document = head.model_dump() | {"rounds": [entry.model_dump() for entry in entries], "keys": dict(keys)}
    return Provenance.model_validate({**document, "adapter": document["rounds"][-1]["adapter"], "digest": previous})


def read(content: bytes) -> Provenance:
    """Parses the document. Raises ProvenanceInvalid."""
    try:
        return Provenance.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = "/".join(map(str, first["loc"]))
        raise ProvenanceInvalid(FILE, f"is not of a form that this version knows: {place}: {first['msg']}") from None


def check(provenance: Provenance) -> None:
    """Checks every signature, and every link from the head to the digest. Raises ProvenanceInvalid."""
    if provenance.format != FORMAT or not provenance.rounds:
        raise ProvenanceInvalid(
            FILE,
            f"has format {provenance.format!r} with {len(provenance.rounds)} rounds; this version reads {FORMAT!r}",
        )
    _check_keys(provenance)
    previous, before = provenance.head.canonical_digest(), None
    for entry in provenance.rounds:
        if entry.previous != previous:
            raise ProvenanceInvalid(entry.name, "its `previous` is not the digest of the preceding link")
        if before is not None and entry.start_digest != before.state_digest:
            raise ProvenanceInvalid(entry.name, f"does not start from the state that {before.name} made")
        for update in entry.updates:
            _check_update(provenance, entry, update)
        previous, before = entry.canonical_digest(), entry
    if provenance.digest != previous:
        raise ProvenanceInvalid(
            f"digest after {provenance.rounds[-1].name}", "is not the digest of the round's entry"
        )
    if provenance.adapter != provenance.rounds[-1].adapter:
        raise ProvenanceInvalid("adapter", f"is not the one that {provenance.rounds[-1].name} made")


def _check_keys(provenance: Provenance) -> None:
    signers = {update.key_id for entry in provenance.rounds for update in entry.updates}
    for name, public_key in provenance.keys.items():
        try:
            same = key_id(public_key) == name
        except ValueError:
            same = False
        if not same or name not in signers:
            raise ProvenanceInvalid(
                f"key {name}", "is not the key of that id" if not same else "signed none of the updates"
            )


def _check_update(provenance: Provenance, entry: RoundRecord, update: UpdateRecord) -> None:
    link = f"{entry.name}, update of client {update.ordinal}"
    if update.key_id is None or update.signature is None:
        raise ProvenanceInvalid(link, "carries no signature")
    if update.key_id not in provenance.keys:
        raise ProvenanceInvalid(link, f"its key {update.key_id} is not among the keys")
    try:
        message = provenance.statement(entry, update).encode()
    except ValueError:
        raise ProvenanceInvalid(link, f"its weight {update.weight} is not a number that can be signed") from None
    if not is_signature_valid(provenance.keys[update.key_id], update.signature, message):
        raise ProvenanceInvalid(link, "the signature is not valid")
