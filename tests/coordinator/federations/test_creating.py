"""Creating, changing, cloning and deleting federations over HTTP, with the errors for bad requests."""

import json
from typing import Any

import pytest

from coordinator.db.sessions import reading
from coordinator.models import Federation, Hold, Job, Round
from tests.coordinator.clients.scene import everything
from tests.support.algorithms import installed
from tests.support.bad_texts import PATTERNS, TEMPLATES
from tests.support.federation_rig import FederationRig, definition
from tests.support.service import created, problem


def pointers(rig: FederationRig, **changes: Any) -> list[str]:
    """The fields that a request for a federation is refused for."""
    answer = rig.owner.owner.post("/v1/federations", json=definition(**changes))
    return [error["pointer"] for error in problem(answer, 422, "request_invalid")["errors"]]


class TestCreate:
    def test_a_draft_has_a_whole_definition_and_its_owner_takes_part(self, rig: FederationRig) -> None:
        answer = rig.owner.owner.post("/v1/federations", json=definition(seed=None))
        shown = created(answer)
        assert answer.headers["location"] == f"/v1/federations/{shown['id']}"
        assert (shown["state"], shown["waiting_for"], shown["organization_id"]) == ("draft", None, rig.owner.id)
        made = shown["definition"]
        assert (made["min_clients"], made["algorithm_revision"], made["config"]["batch_size"]) == (2, 1, 16)
        assert 0 <= made["seed"] == shown["seed"] < 2**53
        rig.federation_id = shown["id"]
        assert [row["state"] for row in rig.get("invitations")["items"]] == ["accepted"]

    def test_another_draft_draws_another_seed(self, rig: FederationRig) -> None:
        seeds = {created(rig.owner.owner.post("/v1/federations", json=definition(seed=None)))["seed"] for _ in "ab"}
        assert len(seeds) == 2

    @pytest.mark.parametrize(
        ("changes", "pointer"),
        [
            ({"name": "bin\u202e"}, "/name"),
            ({"surprise": 1}, "/surprise"),
            ({"algorithm": "magic"}, "/algorithm"),
            ({"config": {"learning_rate": -1}}, "/config/learning_rate"),
            ({"config": {"momentumm": 0.9}}, "/config/momentumm"),
            ({"config": {"betas": [0.9, "x"]}}, "/config/betas/1"),
            ({"trainable": {"kind": "lora", "r": 0}}, "/trainable/r"),
            ({"trainable": {"kind": "lora", "rr": 4}}, "/trainable/rr"),
            ({"trainable": {"kind": "none"}}, "/trainable"),
            ({"trainable": {"kind": "full"}}, "/trainable"),
            ({"task": {"task": "sequence_classification", "labels": ["one"]}}, "/task"),
            ({"task": {"task": "sequence_classification", "labels": ["caf\u00e9", "cafe\u0301"]}}, "/task/labels"),
            ({"task": {"task": "causal_lm", "metrics": ["charm"]}}, "/task/metrics/0"),
            ({"task": {"task": "causal_lm", "template": {"prompt": "{instruction"}}}, "/task/template/prompt"),
            ({"trainable": {"kind": "lora", "alpha_pattern": {"(": 2}}}, "/trainable/alpha_pattern/("),
            ({"base_model": {"id": "tiny", "weights_sha256": "abc"}}, "/base_model/weights_sha256"),
            ({"rounds": 0}, "/rounds"),
            ({"rounds": 100_001}, "/rounds"),
            ({"clients_per_round": 2, "min_clients": 3}, "/min_clients"),
            ({"round_deadline_seconds": 0}, "/round_deadline_seconds"),
            ({"seed": -1}, "/seed"),
            ({"seed": 2**53}, "/seed"),
            ({"max_update_norm": 0}, "/max_update_norm"),
            ({"evaluation": {"who": "nobody"}}, "/evaluation/who"),
            ({"stopping": {"target": 0.9}}, "/stopping"),
            ({"retention": {"keep_states_rounds": 0}}, "/retention/keep_states_rounds"),
            ({"initial_adapter": {"federation_id": "fed_none"}}, "/initial_adapter"),
        ],
    )
    def test_a_bad_field_is_named_and_nothing_changes(
        self, rig: FederationRig, changes: dict[str, Any], pointer: str
    ) -> None:
        before = everything()
        answer = rig.owner.owner.post("/v1/federations", json=definition(**changes))
        assert answer.status_code == 422, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
        assert everything() == before

    @pytest.mark.parametrize("number", ["1e999", "-Infinity", "NaN"])
    def test_a_number_that_is_not_finite_is_named(self, rig: FederationRig, number: str) -> None:
        before = everything()
        trainable = {"kind": "lora", "r": 2, "rank_pattern": {"a.b": 1}, "alpha_pattern": {"a.b": "NUMBER"}}
        for changes, pointer in (
            ({"config": {"max_grad_norm": "NUMBER"}}, "/config/max_grad_norm"),
            ({"trainable": trainable}, "/trainable/alpha_pattern/a.b"),
            ({"stopping": {"metric": "loss", "target": "NUMBER"}}, "/stopping/target"),
        ):
            body = json.dumps(definition(**changes)).replace('"NUMBER"', number)
            answer = rig.owner.owner.post(
                "/v1/federations", content=body, headers={"Content-Type": "application/json"}
            )
            assert [error["pointer"] for error in problem(answer, 422, "request_invalid")["errors"]] == [pointer]
        assert everything() == before

    @pytest.mark.parametrize("text", TEMPLATES.values(), ids=list(TEMPLATES))
    def test_what_is_no_template_is_refused_where_it_stands(self, rig: FederationRig, text: str) -> None:
        labels = {"task": "sequence_classification", "labels": ["no", "yes"]}
        cloze = labels | {"cloze": {"template": text, "words": ["bad", "good"]}}
        assert pointers(rig, task=cloze) == ["/task/cloze/template"]
        for field in ("prompt", "response"):
            task = {"task": "causal_lm", "template": {field: text + "{text}"}}
            assert pointers(rig, task=task) == [f"/task/template/{field}"]

    @pytest.mark.parametrize("text", PATTERNS.values(), ids=list(PATTERNS))
    def test_what_is_no_pattern_is_refused_where_it_stands(self, rig: FederationRig, text: str) -> None:
        key = text.replace("~", "~0").replace("/", "~1")
        lora: dict[str, Any] = {
            "target_modules": [text],
            "rank_pattern": {text: 2},
            "alpha_pattern": {text: 2},
            "modules_to_save": ["x", text],
        }
        assert sorted(pointers(rig, trainable={"kind": "lora", **lora})) == [
            f"/trainable/alpha_pattern/{key}",
            "/trainable/modules_to_save/1",
            f"/trainable/rank_pattern/{key}",
            "/trainable/target_modules/0",
        ]
        assert pointers(rig, trainable={"kind": "lora", "target_modules": text}) == ["/trainable/target_modules"]
        full = {"trainable": {"kind": "full"}, "algorithm": "fedkseed"}
        assert pointers(rig, **full, config={"perturb": ["x", text]}) == ["/config/perturb/1"]
        full["trainable"] = {"kind": "full", "names": [text]}
        assert pointers(rig, **full, config={}) == ["/trainable/names/0"]

    @pytest.mark.parametrize(
        ("trainable", "pointer"),
        [
            ({"target_modules": ["a"] * 1025}, "/trainable/target_modules"),
            ({"rank_pattern": {f"a{number}": 2 for number in range(1025)}}, "/trainable/rank_pattern"),
            ({"alpha_pattern": {f"a{number}*": 2 for number in range(33)}}, "/trainable/alpha_pattern"),
            ({"modules_to_save": [f"a{number}*" for number in range(33)]}, "/trainable/modules_to_save"),
            ({"target_modules": "all-linear", "layers_to_transform": [0]}, "/trainable/layers_to_transform"),
            ({"layers_to_transform": [-1]}, "/trainable/layers_to_transform/0"),
        ],
    )
    def test_patterns_beyond_the_bounds_are_refused(
        self, rig: FederationRig, trainable: dict[str, Any], pointer: str
    ) -> None:
        assert pointers(rig, trainable={"kind": "lora", **trainable}) == [pointer]

    def test_an_unknown_algorithm_is_told_which_there_are(self, rig: FederationRig) -> None:
        answer = rig.owner.owner.post("/v1/federations", json=definition(algorithm="magic"))
        assert "fedavg" in problem(answer, 422, "algorithm_unknown")["detail"]

    def test_a_setting_of_simulations_alone_is_refused(self, rig: FederationRig) -> None:
        with installed():
            wish = definition(algorithm="phased", config={"simulated": True})
            answer = problem(rig.owner.owner.post("/v1/federations", json=wish), 422, "config_not_served")
        assert answer["errors"][0] == {"pointer": "/config", "detail": "simulated is for simulations"}

    def test_only_owners_and_admins_create(self, rig: FederationRig) -> None:
        for client in (rig.owner.operator, rig.owner.viewer):
            problem(client.post("/v1/federations", json=definition()), 403, "role_too_small")
        problem(rig.service.anonymous.post("/v1/federations", json=definition()), 401, "credentials_missing")

    def test_an_admin_names_the_organization(self, rig: FederationRig) -> None:
        admin = rig.service.admin
        answer = problem(admin.post("/v1/federations", json=definition()), 422, "organization_unknown")
        assert answer["errors"][0]["pointer"] == "/organization_id"
        made = created(admin.post("/v1/federations", json=definition(organization_id=rig.owner.id)))
        assert made["organization_id"] == rig.owner.id

    def test_nobody_creates_for_another_organization(self, rig: FederationRig) -> None:
        other = rig.service.new_organization("other")
        answer = rig.owner.owner.post("/v1/federations", json=definition(organization_id=other.id))
        problem(answer, 403, "not_your_organization")


class TestSee:
    def test_a_stranger_sees_nothing(self, rig: FederationRig) -> None:
        rig.create()
        stranger = rig.service.new_organization("stranger").owner
        for part in ("", "/rounds", "/rounds/1", "/events", "/adapter"):
            problem(stranger.get(rig.path() + part), 404, "federation_unknown")
        assert stranger.get("/v1/federations").json()["items"] == []

    def test_an_invited_organization_sees_it_and_cannot_change_it(self, rig: FederationRig) -> None:
        rig.create()
        guest = rig.service.new_organization("guest")
        rig.owner.owner.post(rig.path("invitations"), json={"organization_id": guest.id}).raise_for_status()
        assert [row["id"] for row in guest.viewer.get("/v1/federations").json()["items"]] == [rig.federation_id]
        for call in ("start", "pause", "resume", "cancel", "clone"):
            problem(guest.owner.post(rig.path(call)), 403, "not_the_owner")
        problem(guest.owner.delete(rig.path()), 403, "not_the_owner")
        problem(guest.owner.patch(rig.path(), json={"rounds": 3}), 403, "not_the_owner")

    def test_a_list_comes_in_pages(self, rig: FederationRig) -> None:
        wanted = {rig.create(name=f"number {number}") for number in range(3)}
        first = rig.owner.viewer.get("/v1/federations", params={"limit": 2}).json()
        rest = rig.owner.viewer.get("/v1/federations", params={"cursor": first["next_cursor"]}).json()
        assert {row["id"] for row in first["items"] + rest["items"]} == wanted


class TestChange:
    def test_given_fields_are_replaced_and_the_others_stay(self, rig: FederationRig) -> None:
        rig.create(rounds=5)
        changes = {"rounds": 7, "config": {"local_steps": 3}, "name": "new", "clients_per_round": 4, "min_clients": 1}
        answer = rig.owner.owner.patch(rig.path(), json=changes, headers={"If-Match": "*"})
        assert answer.status_code == 200, answer.text
        shown = rig.show()
        assert (shown["name"], shown["seed"], shown["definition"]["rounds"]) == ("new", 7, 7)
        assert shown["definition"]["config"]["local_steps"] == 3

    @pytest.mark.parametrize(
        ("changes", "pointer"),
        [
            ({"rounds": 0}, "/rounds"),
            ({"config": {"x": 1}}, "/config/x"),
            ({"nonsense": 1}, "/nonsense"),
            ({"trainable": {"kind": "lora", "r": 0}}, "/trainable/r"),
        ],
    )
    def test_a_bad_change_is_named_and_nothing_changes(
        self, rig: FederationRig, changes: dict[str, Any], pointer: str
    ) -> None:
        rig.create()
        before = everything()
        answer = problem(rig.owner.owner.patch(rig.path(), json=changes), 422, "request_invalid")
        assert [error["pointer"] for error in answer["errors"]] == [pointer]
        assert everything() == before

    def test_a_federation_that_runs_does_not_change(self, rig: FederationRig) -> None:
        rig.create()
        rig.post("start")
        problem(rig.owner.owner.patch(rig.path(), json={"rounds": 4}), 409, "not_a_draft")


class TestClone:
    def test_a_clone_is_a_draft_with_the_same_definition(self, rig: FederationRig) -> None:
        rig.create()
        rig.post("cancel")
        copy = created(rig.owner.owner.post(rig.path("clone"), json={"name": "again"}))
        earlier = rig.show()
        assert copy["definition"] == earlier["definition"]
        assert (copy["state"], copy["name"], earlier["state"]) == ("draft", "again", "cancelled")
        assert created(rig.owner.owner.post(rig.path("clone")))["name"] == "messages copy"


class TestDelete:
    def test_an_ended_federation_goes_with_its_rows_and_holds(self, rig: FederationRig) -> None:
        rig.running(rounds=1)
        problem(rig.owner.owner.delete(rig.path()), 409, "federation_state")
        rig.play(1)
        problem(rig.owner.operator.delete(rig.path()), 403, "role_too_small")
        assert rig.owner.owner.delete(rig.path()).status_code == 204
        problem(rig.owner.owner.get(rig.path()), 404, "federation_unknown")
        with reading() as session:
            for table in (Federation, Round, Job, Hold):
                assert session.query(table).count() == 0
