"""`provenance.json`: what an adapter was made of, as a chain that anybody can check.

    head (federation, definition, weights) <- round 1 <- round 2 <- … <- digest

Each round's entry names the digest of what stands before it (`previous`), the state it started from, which is the one
the round before it made, the state and the adapter it made, and every update with its worker's signature. Whoever
knows `digest` knows all of it: the canonical JSON of the last entry, hashed.
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
    """Something that does not hold; the text names the first link of which that is so."""

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
    """An accepted update. `signature` holds over its `Statement` under the key `key_id`."""

    ordinal: int
    job_id: str
    digest: str
    weight: float
    examples: int
    environment: dict[str, str]
    key_id: str | None
    signature: str | None


class OmissionRecord(_Record):
    """An accepted update that was not aggregated, and why."""

    ordinal: int
    digest: str
    reason: str


class RoundRecord(_Record):
    """An aggregated round. A round of preparation makes no adapter. `left_out` stands where there is something in it:
    documents from before it was known keep their digests.
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
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = serialize(self)
        return document if self.left_out else {name: document[name] for name in document if name != "left_out"}

    @property
    def name(self) -> str:
        """How reports name the round."""
        return f"{self.kind} round {self.number}"


class FederationRecord(_Record):
    id: str
    name: str
    seed: int


class Head(_Record):
    """What holds for all rounds."""

    format: str
    federation: FederationRecord
    definition: dict[str, Any]
    base_weights_digest: str | None


class Provenance(Head):
    """The whole document. Clients by ordinal alone: an adapter travels further than their names should."""

    rounds: list[RoundRecord]
    keys: dict[str, str]
    adapter: AdapterRecord
    digest: str

    @property
    def head(self) -> Head:
        """The chain's beginning."""
        return Head(**{name: getattr(self, name) for name in Head.model_fields})

    def statement(self, entry: RoundRecord, update: UpdateRecord) -> Statement:
        """What the worker signed."""
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
    """ "sha256:" and the digits of the value's canonical JSON."""
    return "sha256:" + hashlib.sha256(canonical_json(value)).hexdigest()


def build_chain(head: Head, rounds: Iterable[Mapping[str, Any]], keys: Mapping[str, str]) -> Provenance:
    """The document for these rounds, in order; each gets its `previous` here. The last one made the adapter."""
    entries: list[RoundRecord] = []
    previous = head.canonical_digest()
    for facts in rounds:
        entries.append(RoundRecord.model_validate({**facts, "previous": previous}))
        previous = entries[-1].canonical_digest()
    document = head.model_dump() | {"rounds": [entry.model_dump() for entry in entries], "keys": dict(keys)}
    return Provenance.model_validate({**document, "adapter": document["rounds"][-1]["adapter"], "digest": previous})


def read(content: bytes) -> Provenance:
    """The document in `content`. Raises ProvenanceInvalid for what is none."""
    try:
        return Provenance.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = "/".join(map(str, first["loc"]))
        raise ProvenanceInvalid(
            FILE, f"is not of the form that this version knows: {place}: {first['msg']}"
        ) from None


def check(told: Provenance) -> None:
    """Every signature, and every link from the head to the digest. Raises ProvenanceInvalid."""
    if told.format != FORMAT or not told.rounds:
        raise ProvenanceInvalid(
            FILE, f"is of the form {told.format!r} with {len(told.rounds)} rounds; known is {FORMAT!r}"
        )
    _check_keys(told)
    previous, before = told.head.canonical_digest(), None
    for entry in told.rounds:
        if entry.previous != previous:
            raise ProvenanceInvalid(entry.name, "what stands before it is not what it names as `previous`")
        if before is not None and entry.start_digest != before.state_digest:
            raise ProvenanceInvalid(entry.name, f"does not start from the state that {before.name} made")
        for update in entry.updates:
            _check_update(told, entry, update)
        previous, before = entry.canonical_digest(), entry
    if told.digest != previous:
        raise ProvenanceInvalid(f"digest after {told.rounds[-1].name}", "is not that of the round's entry")
    if told.adapter != told.rounds[-1].adapter:
        raise ProvenanceInvalid("adapter", f"is not the one that {told.rounds[-1].name} made")


def _check_keys(told: Provenance) -> None:
    used = {update.key_id for entry in told.rounds for update in entry.updates}
    for name, public_key in told.keys.items():
        try:
            same = key_id(public_key) == name
        except ValueError:
            same = False
        if not same or name not in used:
            raise ProvenanceInvalid(
                f"key {name}", "is not the key of that id" if not same else "signed none of the updates"
            )


def _check_update(told: Provenance, entry: RoundRecord, update: UpdateRecord) -> None:
    link = f"{entry.name}, update of client {update.ordinal}"
    if update.key_id is None or update.signature is None:
        raise ProvenanceInvalid(link, "carries no signature")
    if update.key_id not in told.keys:
        raise ProvenanceInvalid(link, f"its key {update.key_id} is not among the keys")
    try:
        message = told.statement(entry, update).encode()
    except ValueError:
        raise ProvenanceInvalid(link, f"its weight {update.weight} is no number that could be signed") from None
    if not is_signature_valid(told.keys[update.key_id], update.signature, message):
        raise ProvenanceInvalid(link, "the signature does not hold")
