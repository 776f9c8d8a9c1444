"""Provenance as a hash chain: valid as written, and invalid after any change."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coordinator.db.sessions import writing
from coordinator.models import Job
from coordinator.provenance import document as provenance
from coordinator.provenance.document import Head, ProvenanceInvalid, build_chain
from federated.signed_statement import Statement, key_id
from tests.support.federation_rig import FederationRig
from tests.support.service import Identity, rotate

CHAIN = "its `previous` is not the digest of the preceding link"
HEAD = Head.model_validate(
    {
        "format": provenance.FORMAT,
        "federation": {"id": "fed_1", "name": "messages", "seed": 7},
        "definition": {"algorithm": "fedavg", "algorithm_revision": 1, "config": {"learning_rate": 1e-05}},
        "base_weights_digest": "sha256:" + "b" * 64,
    }
)


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def signed(worker: Identity, number: int, ordinal: int) -> dict[str, Any]:
    """An update as the provenance tells it."""
    job_id, weight, examples = f"job_{number}{ordinal}", 10.0 * (ordinal + 1), 20
    said = Statement("fed_1", job_id, "train", number, "fedavg", 1, digest(100 * number + ordinal), weight, examples)
    return {
        "ordinal": ordinal,
        "job_id": job_id,
        "digest": said.digest,
        "weight": weight,
        "examples": examples,
        "environment": {"torch": "2.6"},
        "key_id": key_id(worker.public_key),
        "signature": worker.sign(said.encode()),
    }


@pytest.fixture
def document() -> dict[str, Any]:
    """Of two rounds of two clients, as JSON values."""
    workers = [Identity(), Identity()]
    rounds = [
        {
            "kind": "train",
            "number": number,
            "attempt": 1,
            "start_digest": digest(number),
            "state_digest": digest(number + 1),
            "adapter": {"kind": "peft", "files": {"README.md": {"digest": digest(50 + number), "size_bytes": 9}}},
            "environment": {"torch": "2.6", "aggregation_threads": 2},
            "not_reproducible": ["retry"],
            "updates": [signed(worker, number, ordinal) for ordinal, worker in enumerate(workers)],
        }
        for number in (1, 2)
    ]
    keys = {key_id(worker.public_key): worker.public_key for worker in workers}
    return build_chain(HEAD, rounds, keys).model_dump(mode="json")


def check(document: dict[str, Any]) -> None:
    """As for one that was downloaded."""
    provenance.check(provenance.read(json.dumps(document).encode()))


def broken(document: dict[str, Any]) -> str:
    """What is said of a document that does not hold."""
    with pytest.raises(ProvenanceInvalid) as found:
        check(document)
    return str(found.value)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value in the document that holds no others, with the way to it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from leaves(one, (*path, key))
    if not isinstance(value, dict | list):
        yield path, value


def replaced(document: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    """The document with another number there, or with one other character in the text."""
    changed = copy.deepcopy(document)
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    value = place[path[-1]]
    at = len(value) // 2 if isinstance(value, str) else 0
    place[path[-1]] = value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :] if isinstance(value, str) else value + 1
    return changed


class TestWhole:
    def test_it_holds_however_its_json_is_written(self, document: dict[str, Any]) -> None:
        check(document)
        tight = json.dumps(document, sort_keys=True, separators=(",", ":"))
        provenance.check(provenance.read(tight.encode()))


class TestChanged:
    def test_one_changed_character_or_number_anywhere_is_found(self, document: dict[str, Any]) -> None:
        paths = [path for path, _ in leaves(document)]
        assert len(paths) > 50
        unseen = []
        for path in paths:
            try:
                check(replaced(document, path))
            except ProvenanceInvalid:
                continue
            unseen.append(path)
        assert unseen == []

    @pytest.mark.parametrize(
        ("spoil", "told"),
        [
            (lambda d: d["federation"].update(name="another"), f"train round 1: {CHAIN}"),
            (lambda d: d["rounds"][0]["environment"].update(torch="0"), f"train round 2: {CHAIN}"),
            (lambda d: d["rounds"][0]["updates"].pop(), f"train round 2: {CHAIN}"),
            (lambda d: d["rounds"].pop(0), f"train round 2: {CHAIN}"),
            (lambda d: d["rounds"].pop(), "digest after train round 1: is not the digest of the round's entry"),
            (lambda d: d["rounds"][1]["updates"][0].update(weight=9.0), "2, update of client 0: the signature is"),
            (lambda d: d["rounds"][1]["updates"][1].update(examples=21), "2, update of client 1: the signature is"),
            (lambda d: d["rounds"][1]["updates"][1].update(signature=None), "update of client 1: carries no"),
            (lambda d: d["rounds"][1]["updates"][1].update(key_id="?"), "update of client 1: its key ? is not among"),
            (lambda d: d["keys"].update({key_id("A" * 43): "A" * 43}), "signed none of the updates"),
            (lambda d: d["keys"].update(mine="A" * 43), "key mine: is not the key of that id"),
            (lambda d: d["rounds"][1].update(attempt=2), "digest after train round 2: is not the digest of"),
            (lambda d: d["adapter"].update(kind="ledger"), "adapter: is not the one that train round 2 made"),
            (lambda d: d["rounds"].clear(), "with 0 rounds"),
            (lambda d: d.update(color="red"), "color: Extra inputs"),
            (lambda d: d.pop("keys"), "keys: Field required"),
        ],
    )
    def test_the_first_link_that_does_not_hold_is_named(
        self, document: dict[str, Any], spoil: Callable[[dict[str, Any]], object], told: str
    ) -> None:
        spoil(document)
        assert told in broken(document)

    def test_a_round_that_starts_elsewhere_is_found_though_all_digests_were_made_anew(
        self, document: dict[str, Any]
    ) -> None:
        document["rounds"][1]["start_digest"] = digest(9)
        document["digest"] = provenance.digest_of(document["rounds"][1])
        assert broken(document) == "train round 2: does not start from the state that train round 1 made"

    @pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff", b'{"rounds": "many"}'])
    def test_what_is_no_provenance_is_said_to_be_none(self, content: bytes) -> None:
        with pytest.raises(ProvenanceInvalid, match=r"^provenance\.json: is not of a form"):
            provenance.read(content)


class TestOfAFederation:
    def test_each_round_goes_on_where_the_one_before_ended(self, rig: FederationRig) -> None:
        first, _ = rig.running(rounds=2)
        rig.play(1)
        old = first.worker.identity.public_key
        rotate(first.worker)
        rig.play(1)
        told = rig.get("adapter", "provenance.json")
        check(told)
        one, two = told["rounds"]
        assert (two["start_digest"], two["previous"]) == (one["state_digest"], provenance.digest_of(one))
        assert told["adapter"] == two["adapter"] == rig.rounds()[1]["adapter"]
        keys = [actor.worker.identity.public_key for actor in rig.actors]
        used = [[told["keys"][update["key_id"]] for update in row["updates"]] for row in (one, two)]
        assert used == [[old, keys[1]], keys]
        assert len(told["keys"]) == 3
        earlier = rig.get("rounds", "1", "adapter", "provenance.json")
        assert (earlier["rounds"], earlier["digest"]) == ([one], two["previous"])

    def test_what_was_accepted_before_updates_were_signed_is_told_and_does_not_hold(self, rig: FederationRig) -> None:
        rig.running(rounds=1)
        rig.play(1)
        with writing() as session:
            for job in session.query(Job).where(Job.kind == "train"):
                update = {**(job.submission or {})["update"]}
                update.pop("signature")
                job.key_id, job.submission = None, {**(job.submission or {}), "update": update}
        told = rig.get("adapter", "provenance.json")
        assert told["keys"] == {}
        assert broken(told) == "train round 1, update of client 0: carries no signature"
