"""Consent of an organization: it accepts a digest, and a changed definition needs acceptance again."""

from typing import Any

import pytest

from federated.signed_statement import definition_digest
from tests.coordinator.clients.drafts import Draft
from tests.coordinator.clients.scene import everything
from tests.support.audit_log import chain_of
from tests.support.federation_rig import CAPABILITIES, DATASET
from tests.support.service import accept, created, problem

OTHER = "sha256:" + "0" * 64
CRAFTED = {
    "task": {"task": "causal_lm", "template": {"prompt": "{text}", "response": "{patient_ssn}"}},
    "rounds": 100_000, "algorithm": "fedkseed", "config": {"local_steps": 65536}, "trainable": {"kind": "full"},
}  # fmt: skip
CHANGES: list[dict[str, Any]] = [
    {"name": "other"},
    {"task": {"task": "sequence_classification", "labels": ["no", "yes"], "max_length": 64}},
    {"base_model": {"id": "another"}},
    {"trainable": {"kind": "lora", "r": 3, "target_modules": ["layer"]}},
    {"algorithm": "flexlora", "config": {}},
    {"config": {"local_steps": 2}},
    {"rounds": 3},
    {"clients_per_round": 3},
    {"min_clients": 1},
    {"over_selection": 1},
    {"round_deadline_seconds": 60},
    {"prepare_deadline_seconds": 60},
    {"evaluation_deadline_seconds": 60},
    {"wait_for_clients_seconds": 60},
    {"max_round_retries": 4},
    {"lease_seconds": 61},
    {"max_attempts": 4},
    {"max_update_norm": 1.0},
    {"seed": 8},
    {"evaluation": {"every": 1}},
    {"stopping": {"metric": "accuracy", "target": 0.5}},
    {"retention": {"keep_updates_rounds": 3}},
]


class TestDigest:
    def test_it_can_be_computed_from_what_is_shown(self, draft: Draft) -> None:
        shown = draft.clinic.viewer.get(draft.rig.path()).json()
        agreed = {name: shown[name] for name in ("name", "organization_id", "definition")}
        assert definition_digest(agreed) == shown["definition_digest"] == draft.invitation()["definition_digest"]

    def test_each_field_of_the_request_changes_it(self, draft: Draft) -> None:
        seen = {draft.digest}
        for change in CHANGES:
            draft.change(**change).raise_for_status()
            assert draft.digest not in seen, change
            seen.add(draft.digest)

    def test_every_field_that_can_be_changed_is_among_these(self, draft: Draft) -> None:
        asked = {name for change in CHANGES for name in change}
        assert asked | {"initial_adapter", "algorithm_revision"} == {*draft.rig.show()["definition"], "name"}

    def test_another_owner_has_another(self, draft: Draft) -> None:
        theirs = created(draft.clinic.owner.post("/v1/federations", json=_as_request(draft.rig.show())))
        assert theirs["definition"] == draft.rig.show()["definition"]
        assert theirs["definition_digest"] != draft.digest


class TestAccept:
    @pytest.mark.parametrize("how", ["body", "tag", "both"])
    def test_the_digest_that_was_seen_is_agreed_to_and_on_record(self, draft: Draft, how: str) -> None:
        digest = draft.digest
        answer = draft.accept(digest if how != "tag" else None, tag=f'"{digest}"' if how != "body" else None)
        assert (answer.status_code, answer.json()["state"], answer.json()["agreed_digest"]) == (
            200,
            "accepted",
            digest,
        )
        assert draft.invitation()["agreed_digest"] == digest
        (event,) = draft.events("organization.accepted")
        assert event["definition_digest"] == digest
        for organization in (draft.clinic, draft.rig.owner):
            entry = chain_of(draft.rig.service, organization.id)[-1]
            assert (entry["action"], entry["details"]["definition_digest"]) == ("invitation.accepted", digest)

    def test_without_a_digest_nothing_is_agreed_to(self, draft: Draft) -> None:
        before = everything()
        problem(draft.clinic.owner.post(draft.rig.path("accept")), 428, "if_match_missing")
        problem(draft.accept(), 428, "if_match_missing")
        assert everything() == before

    def test_anything_but_the_present_digest_is_refused(self, draft: Draft) -> None:
        now, etag = draft.digest, draft.clinic.owner.get(draft.rig.path()).headers["etag"]
        before = everything()
        tags = (
            "*", "", now, etag, '""', f'"{OTHER}"', f'"{OTHER}", "{now}"', f'"{now}", "{OTHER}"', f'"{now}", "{now}"',
            f'W/"{now}"', f'"{now}', f'"{now}x"', f'"{now}", *',
        )  # fmt: skip
        for tag in tags:
            problem(draft.accept(tag=tag), 412, "changed_meanwhile")
        problem(draft.accept(OTHER), 412, "changed_meanwhile")
        problem(draft.accept(now, tag="*"), 412, "changed_meanwhile")
        problem(draft.accept(OTHER, tag=f'"{now}"'), 412, "changed_meanwhile")
        assert everything() == before

    @pytest.mark.parametrize("digest", ["", "*", "sha256:", "sha256:" + "A" * 64, 7])
    def test_what_is_no_digest_is_named(self, draft: Draft, digest: Any) -> None:
        answer = draft.clinic.owner.post(draft.rig.path("accept"), json={"definition_digest": digest})
        assert [error["pointer"] for error in problem(answer, 422, "request_invalid")["errors"]] == [
            "/definition_digest"
        ]

    def test_a_draft_that_changed_after_it_was_seen_is_not_accepted(self, draft: Draft) -> None:
        seen = draft.invitation()["definition_digest"]
        draft.change(**CRAFTED).raise_for_status()
        before = everything()
        problem(draft.accept(seen), 412, "changed_meanwhile")
        problem(draft.accept(tag=f'"{seen}"'), 412, "changed_meanwhile")
        assert everything() == before
        shown = draft.invitation()
        assert (shown["state"], shown["columns"], shown["rounds"]) == ("invited", ["text", "patient_ssn"], 100_000)

    def test_a_key_used_for_another_digest_is_not_answered_as_before(self, draft: Draft) -> None:
        path, key = draft.rig.path("accept"), {"Idempotency-Key": "once"}
        problem(draft.clinic.owner.post(path, headers={**key, "If-Match": f'"{OTHER}"'}), 412, "changed_meanwhile")
        again = draft.clinic.owner.post(path, headers={**key, "If-Match": f'"{draft.digest}"'})
        problem(again, 422, "idempotency_key_reused")


class TestChange:
    def test_everybody_who_had_accepted_is_asked_again(self, draft: Draft) -> None:
        actor = draft.joined()
        agreed = draft.digest
        draft.change(rounds=4).raise_for_status()
        shown = draft.invitation()
        assert (shown["state"], shown["reason"], shown["agreed_digest"]) == ("invited", "definition_changed", None)
        assert (shown["answered_at"], shown["definition_digest"] != agreed) == (None, True)
        client = draft.client(actor)
        assert (client["state"], client["reason"]) == ("left", "definition_changed")
        assert draft.events("organization.invited")[-1] == {
            "organization_id": draft.clinic.id, "reason": "definition_changed", "definition_digest": draft.digest,
        }  # fmt: skip
        assert draft.events("client.left") == [
            {"client_id": actor.client_id, "ordinal": 0, "reason": "definition_changed", "detail": None}
        ]
        entries = chain_of(draft.rig.service, draft.clinic.id)[-3:]
        assert [(entry["action"], entry["details"].get("reason")) for entry in entries] == [
            ("federation.changed", None),
            ("invitation.invited", "definition_changed"),
            ("client.left", "definition_changed"),
        ]
        assert entries[0]["details"]["definition_digest"] == draft.digest

    def test_after_accepting_again_a_client_takes_its_old_place(self, draft: Draft) -> None:
        actor = draft.joined()
        draft.change(rounds=4).raise_for_status()
        wish = {"worker_id": actor.worker.id, "dataset": DATASET}
        problem(draft.clinic.owner.post(draft.rig.path("clients"), json=wish), 409, "invitation_not_accepted")
        accept(draft.clinic.owner, draft.rig.federation_id).raise_for_status()
        again = created(draft.clinic.owner.post(draft.rig.path("clients"), json=wish))
        assert (again["id"], again["ordinal"], again["state"], again["reason"]) == (
            actor.client_id,
            0,
            "registered",
            None,
        )

    def test_the_same_definition_again_asks_nobody(self, draft: Draft) -> None:
        actor = draft.joined()
        digest = draft.digest
        draft.change(rounds=2, name="messages", config={"local_steps": 1}).raise_for_status()
        assert (draft.digest, draft.invitation()["state"], draft.client(actor)["state"]) == (
            digest, "accepted", "registered",
        )  # fmt: skip

    def test_a_refused_change_asks_nobody(self, draft: Draft) -> None:
        draft.joined()
        before = everything()
        problem(draft.change(rounds=0), 422, "request_invalid")
        old = draft.rig.owner.owner.patch(draft.rig.path(), json={"rounds": 5}, headers={"If-Match": '"99-x"'})
        problem(old, 412, "changed_meanwhile")
        assert everything() == before

    @pytest.mark.parametrize("answer", ["decline", "leave"])
    def test_who_does_not_take_part_is_not_invited_by_a_change(self, draft: Draft, answer: str) -> None:
        if answer == "leave":
            draft.joined()
        draft.clinic.owner.post(draft.rig.path(answer), json={"reason": "no"}).raise_for_status()
        draft.change(rounds=4).raise_for_status()
        states = {row["organization_name"]: row["state"] for row in draft.rig.get("invitations")["items"]}
        assert states == {"owner": "accepted", "clinic": {"decline": "declined", "leave": "left"}[answer]}

    def test_clients_of_the_owner_stay_where_the_new_definition_takes_them(self, draft: Draft) -> None:
        stays = draft.rig.join(draft.rig.actor())
        labeled = CAPABILITIES.datasets[0].model_copy(update={"task": "sequence_classification"})
        goes = draft.rig.actor(capabilities=CAPABILITIES.model_copy(update={"datasets": (labeled,)}))
        draft.rig.join(goes)
        draft.change(rounds=4).raise_for_status()
        assert [draft.client(actor)["state"] for actor in (stays, goes)] == ["registered", "registered"]
        draft.change(task={"task": "causal_lm"}).raise_for_status()
        gone = draft.client(goes)
        assert (draft.client(stays)["state"], gone["state"], gone["reason"]) == (
            "registered",
            "left",
            "definition_changed",
        )
        assert "is for sequence_classification" in gone["reason_detail"]

    def test_a_start_takes_nobody_who_was_asked_again(self, draft: Draft) -> None:
        actor = draft.joined()
        draft.change(rounds=4).raise_for_status()
        started = draft.rig.post("start")
        assert (started["state"], started["waiting_for"].split(",")[0]) == ("running", "waiting_for_clients 0/2")
        assert actor.lease() is None
        accept(draft.clinic.owner, draft.rig.federation_id).raise_for_status()
        draft.rig.join(actor)
        draft.rig.settle()
        lease = actor.lease()
        assert lease is not None
        assert lease["work"]["rounds"] == 4


def _as_request(shown: dict[str, Any]) -> dict[str, Any]:
    wish = {name: value for name, value in shown["definition"].items() if name != "algorithm_revision"}
    return {**wish, "name": shown["name"]}
