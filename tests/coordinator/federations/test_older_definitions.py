"""Unreadable definitions of an earlier version, which affect only their own federation."""

from coordinator.db.sessions import writing
from coordinator.models import Federation
from tests.support.federation_rig import FederationRig
from tests.support.service import problem

OLDER = {"kind": "lora", "r": 2, "target_modules": ".*(query|value)"}


def written_by_an_earlier_version(rig: FederationRig) -> None:
    with writing() as session:
        federation = session.get_one(Federation, rig.federation_id)
        federation.definition = federation.definition | {"trainable": OLDER}


def test_it_is_listed_beside_the_others(rig: FederationRig) -> None:
    rig.create()
    written_by_an_earlier_version(rig)
    rig.create()
    shown = {one["federation_id"]: one for one in rig.owner.owner.get("/v1/invitations").json()["items"]}
    assert len(shown) == 2
    (older,) = [one for one in shown.values() if one["trainable"] == OLDER]
    assert (older["columns"], "earlier version" in older["how_often"][0]) == ([], True)
    assert [one["columns"] for one in shown.values() if one is not older] == [["text", "text_pair", "label"]]


def test_it_cannot_be_started(rig: FederationRig) -> None:
    rig.create()
    written_by_an_earlier_version(rig)
    refused = problem(rig.owner.owner.post(rig.path("start")), 422, "request_invalid")
    assert [error["pointer"] for error in refused["errors"]] == ["/trainable/target_modules"]
    assert rig.show()["state"] == "draft"


def test_labels_that_look_the_same_are_shown_and_started_no_more(rig: FederationRig) -> None:
    rig.create()
    alike = {"task": "sequence_classification", "labels": ["a", "a "]}
    with writing() as session:
        federation = session.get_one(Federation, rig.federation_id)
        federation.definition = federation.definition | {"task": alike}
    assert rig.show()["definition"]["task"] == alike
    assert len(rig.owner.owner.get("/v1/invitations").json()["items"]) == 1
    refused = problem(rig.owner.owner.post(rig.path("start")), 422, "request_invalid")
    assert [error["pointer"] for error in refused["errors"]] == ["/task/labels"]


def test_its_jobs_are_not_handed_out_and_those_of_others_are(rig: FederationRig) -> None:
    actor = rig.actor()
    rig.create()
    rig.join(actor)
    rig.post("start")
    written_by_an_earlier_version(rig)
    rig.settle()
    older = rig.federation_id
    rig.create()
    rig.join(actor)
    rig.post("start")
    rig.settle()
    assert actor.lease() is not None
    (client,) = rig.owner.owner.get(f"/v1/federations/{older}/clients").json()["items"]
    assert (client["state"], client["reason"]) == ("out", "definition_unreadable")
