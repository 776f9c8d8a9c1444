"""Unreadable definitions of an earlier version, which affect only their own federation."""

from coordinator.db.sessions import writing
from coordinator.models import Federation
from tests.support.service import problem
from tests.support.stage import Stage

OLDER = {"kind": "lora", "r": 2, "target_modules": ".*(query|value)"}


def written_by_an_earlier_version(stage: Stage) -> None:
    with writing() as session:
        federation = session.get_one(Federation, stage.federation_id)
        federation.definition = federation.definition | {"trainable": OLDER}


def test_it_is_listed_beside_the_others(stage: Stage) -> None:
    stage.create()
    written_by_an_earlier_version(stage)
    stage.create()
    shown = {one["federation_id"]: one for one in stage.owner.owner.get("/v1/invitations").json()["items"]}
    assert len(shown) == 2
    (older,) = [one for one in shown.values() if one["trainable"] == OLDER]
    assert (older["columns"], "earlier version" in older["how_often"][0]) == ([], True)
    assert [one["columns"] for one in shown.values() if one is not older] == [["text", "text_pair", "label"]]


def test_it_cannot_be_started(stage: Stage) -> None:
    stage.create()
    written_by_an_earlier_version(stage)
    refused = problem(stage.owner.owner.post(stage.path("start")), 422, "request_invalid")
    assert [error["pointer"] for error in refused["errors"]] == ["/trainable/target_modules"]
    assert stage.show()["state"] == "draft"


def test_labels_that_look_the_same_are_shown_and_started_no_more(stage: Stage) -> None:
    stage.create()
    alike = {"task": "sequence_classification", "labels": ["a", "a "]}
    with writing() as session:
        federation = session.get_one(Federation, stage.federation_id)
        federation.definition = federation.definition | {"task": alike}
    assert stage.show()["definition"]["task"] == alike
    assert len(stage.owner.owner.get("/v1/invitations").json()["items"]) == 1
    refused = problem(stage.owner.owner.post(stage.path("start")), 422, "request_invalid")
    assert [error["pointer"] for error in refused["errors"]] == ["/task/labels"]


def test_its_jobs_are_not_handed_out_and_those_of_others_are(stage: Stage) -> None:
    actor = stage.actor()
    stage.create()
    stage.join(actor)
    stage.post("start")
    written_by_an_earlier_version(stage)
    stage.settle()
    older = stage.federation_id
    stage.create()
    stage.join(actor)
    stage.post("start")
    stage.settle()
    assert actor.lease() is not None
    (client,) = stage.owner.owner.get(f"/v1/federations/{older}/clients").json()["items"]
    assert (client["state"], client["reason"]) == ("out", "definition_unreadable")
