"""Initial adapters: comparison with the earlier federation when the new one is created."""

from typing import Any

import pytest

from coordinator.db.sessions import writing
from coordinator.models import Federation
from federated.payloads.payload import Payload
from federated.trainable import Initialization, TensorFacts
from tests.support.federation_rig import MODEL, A, B, FederationRig, definition
from tests.support.service import created, problem

LORA = {"kind": "lora", "r": 2, "target_modules": ["layer"]}
TASK = {"task": "sequence_classification", "labels": ["no", "yes"]}
HEAD = TensorFacts(name="classifier.bias", shape=(2,), dtype="F32", initialisation=Initialization(kind="zeros"))
NORM = TensorFacts(name="norm.bias", shape=(2,), dtype="F32", initialisation=Initialization(kind="base"))
WITH_HEAD = MODEL.model_copy(update={"tensors": (HEAD, *MODEL.tensors)})
WITH_NORM = MODEL.model_copy(update={"tensors": (*MODEL.tensors, NORM)})
ZEROS, OTHERS = "0" * 64, "1" * 64


def ended(rig: FederationRig, **fields: Any) -> dict[str, Any]:
    """The reference to a federation that has made an adapter."""
    rig.create(rounds=1)
    for _ in range(2):
        rig.join(rig.actor(**fields))
    rig.post("start")
    rig.play(1)
    return {"federation_id": rig.federation_id}


def refused(rig: FederationRig, initial: dict[str, Any], code: str, **changes: Any) -> str:
    """What the owner is told of a federation that cannot go on from it."""
    wish = definition(initial_adapter=initial, **changes)
    (error,) = problem(rig.owner.owner.post("/v1/federations", json=wish), 422, f"initial_adapter_{code}")["errors"]
    assert error["pointer"] == "/initial_adapter"
    return str(error["detail"])


class TestAsItWas:
    def test_it_is_where_the_federation_begins(self, rig: FederationRig) -> None:
        initial = ended(rig)
        earlier = rig.federation_id
        learned = Payload.decode(rig.owner.owner.get(rig.path("adapter", "adapter_model.safetensors")).content)
        first, _ = rig.running(rounds=1, seed=8, initial_adapter=initial)
        made = rig.show()["definition"]["initial_adapter"]
        assert (made["federation_id"], made["round"], made["weights_sha256"]) == (earlier, 1, ZEROS)
        lease = first.lease()
        assert lease is not None
        given = first.instruction(lease)
        for name in given:
            assert given[name].equal(learned[f"base_model.model.{name}"])
        rig.owner.owner.delete(f"/v1/federations/{earlier}").raise_for_status()
        assert rig.show()["state"] == "running"

    @pytest.mark.parametrize(
        ("scale", "factor"),
        [
            ({"lora_alpha": 64}, 0.25),
            ({"use_rslora": True}, 2**-0.5),
            ({"alpha_pattern": {"layer": 4}}, 4.0),
            ({"lora_dropout": 0.5}, 1.0),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_another_scale_begins_with_factors_of_the_same_product(
        self, rig: FederationRig, scale: dict[str, Any], factor: float
    ) -> None:
        initial = ended(rig)
        learned = Payload.decode(rig.owner.owner.get(rig.path("adapter", "adapter_model.safetensors")).content)
        rig.create(rounds=1, initial_adapter=initial, trainable=LORA | scale)
        rig.owner.owner.delete(f"/v1/federations/{initial['federation_id']}").raise_for_status()
        for actor in rig.actors:
            rig.join(actor)
        rig.post("start")
        for actor in rig.actors:
            assert actor.work() == "describe"
        rig.settle()
        lease = rig.actors[0].lease()
        assert lease is not None
        given = rig.actors[0].instruction(lease)
        assert given[A].equal(learned[f"base_model.model.{A}"])
        assert given[B].allclose(learned[f"base_model.model.{B}"] * factor, rtol=1e-6, atol=0)

    def test_a_clone_goes_on_from_the_same_round(self, rig: FederationRig) -> None:
        rig.create(initial_adapter=ended(rig))
        copy = created(rig.owner.owner.post(rig.path("clone")))
        assert copy["definition"] == rig.show()["definition"]


class TestRefused:
    def test_where_there_is_none_yet_and_of_another_kind(self, rig: FederationRig) -> None:
        rig.running(rounds=1)
        initial = {"federation_id": rig.federation_id, "round": 1}
        refused(rig, initial, "unknown")
        rig.play(1)
        refused(rig, initial, "kind", trainable={"kind": "prefix", "num_virtual_tokens": 2})

    @pytest.mark.parametrize(
        ("changes", "code", "told"),
        [
            ({"trainable": LORA | {"r": 4}}, "rank", "rank 2 at 'layer', this federation 4"),
            ({"trainable": LORA | {"rank_pattern": {"layer": 1}}}, "rank", "this federation 1"),
            ({"trainable": LORA | {"target_modules": ["query"]}}, "targets", "adapts 'layer'"),
            ({"trainable": LORA | {"layers_to_transform": [3], "target_modules": "lay*"}}, "targets", "'layer'"),
            ({"trainable": {"kind": "lora", "r": 2, "modules_to_save": ["layer"]}}, "targets", "'layer'"),
            ({"base_model": {"id": "other"}}, "base_model", f"weights_sha256 to '{ZEROS}'"),
            ({"base_model": {"id": "tiny", "revision": "v2"}}, "base_model", "names 'tiny' at 'v2'"),
            ({"base_model": {"id": "tiny", "weights_sha256": OTHERS}}, "base_model", OTHERS),
            ({"task": TASK | {"labels": ["no", "yes", "so"]}}, "labels", "other labels"),
            ({"task": TASK | {"labels": ["yes", "no"]}}, "labels", "another order"),
            ({"task": {"task": "causal_lm"}}, "task", "a classifier head"),
            ({"algorithm": "fedkseed", "config": {}}, "algorithm", "starts from the base model"),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_what_the_two_definitions_say_is_refused_at_once(
        self, rig: FederationRig, changes: dict[str, Any], code: str, told: str
    ) -> None:
        assert told in refused(rig, ended(rig, model=WITH_HEAD), code, **changes)

    def test_values_of_the_base_models_own_cannot_be_gone_on_from(self, rig: FederationRig) -> None:
        assert "'norm.bias'" in refused(rig, ended(rig, model=WITH_NORM), "values")

    def test_a_federation_whose_words_are_not_read_any_more(self, rig: FederationRig) -> None:
        initial = ended(rig)
        with writing() as session:
            federation = session.get_one(Federation, rig.federation_id)
            federation.definition = federation.definition | {"trainable": LORA | {"target_modules": ".*(q|v)"}}
        refused(rig, initial, "unreadable")

    def test_a_change_of_a_draft_is_held_against_the_adapter_too(self, rig: FederationRig) -> None:
        rig.create(initial_adapter=ended(rig))
        other = {"trainable": LORA | {"r": 4}}
        answer = rig.owner.owner.patch(rig.path(), json=other, headers={"If-Match": "*"})
        problem(answer, 422, "initial_adapter_rank")


class TestTheSameWeights:
    def test_under_another_name_they_are_the_same_by_their_digest(self, rig: FederationRig) -> None:
        rig.create(initial_adapter=ended(rig), base_model={"id": "alias", "weights_sha256": ZEROS})

    def test_a_client_with_others_is_out(self, rig: FederationRig) -> None:
        rig.create(rounds=1, initial_adapter=ended(rig))
        other = rig.join(rig.actor(model=MODEL.model_copy(update={"weights_digest": "sha256:" + OTHERS})))
        rig.post("start")
        assert other.work() == "describe"
        rig.settle()
        (client,) = rig.get("clients")["items"]
        assert (client["state"], client["reason"]) == ("out", "model_mismatch")
        assert ZEROS in client["reason_detail"]
