"""Pausing, canceling and deleting federations in every state, even if other parts are gone or raise."""

from collections.abc import Callable

import pytest

from coordinator.db.sessions import writing
from coordinator.models import Federation, Round
from tests.support.federation_rig import FederationRig
from tests.support.places import lose_broker, lose_store

State = Callable[[FederationRig], None]
Trouble = Callable[[FederationRig, pytest.MonkeyPatch], None]


def describing(rig: FederationRig) -> None:
    rig.create(rounds=2)
    for _ in range(2):
        rig.join(rig.actor())
    rig.post("start")


def collecting(rig: FederationRig) -> None:
    rig.running(rounds=2)


def aggregating(rig: FederationRig) -> None:
    for actor in rig.running(rounds=2):
        actor.work()  # submitted; the message that goes on with it is left in the queue


def evaluating(rig: FederationRig) -> None:
    for actor in rig.running(rounds=2, evaluation={"every": 1}):
        actor.work()
    rig.settle()
    assert rig.rounds()[-1]["state"] == "evaluating"


def nothing(rig: FederationRig, patch: pytest.MonkeyPatch) -> None:
    """All is well."""


def no_broker(rig: FederationRig, patch: pytest.MonkeyPatch) -> None:
    rig.drop_messages()
    lose_broker(patch)


def no_store(rig: FederationRig, patch: pytest.MonkeyPatch) -> None:
    lose_store(patch)


def an_older_definition(rig: FederationRig, patch: pytest.MonkeyPatch) -> None:
    """One that this version no longer reads."""
    with writing() as session:
        federation = session.get_one(Federation, rig.federation_id)
        task = federation.definition["task"] | {"cloze": {"template": "{text:>10} {mask}", "words": ["a", "b"]}}
        federation.definition = federation.definition | {"task": task}


def a_state_that_is_gone(rig: FederationRig, patch: pytest.MonkeyPatch) -> None:
    with writing() as session:
        for round_ in session.query(Round).filter_by(federation_id=rig.federation_id):
            round_.start_digest = "sha256:" + 64 * "0"


STATES: tuple[State, ...] = (describing, collecting, aggregating, evaluating)
TROUBLES: tuple[Trouble, ...] = (nothing, no_broker, no_store, an_older_definition, a_state_that_is_gone)


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_it_is_paused_cancelled_and_deleted(
    rig: FederationRig, monkeypatch: pytest.MonkeyPatch, state: State, trouble: Trouble
) -> None:
    state(rig)
    trouble(rig, monkeypatch)
    owner = rig.owner.owner
    paused = owner.post(rig.path("pause"), params={"now": True})
    assert (paused.status_code, paused.json()["state"]) == (200, "paused"), paused.text
    cancelled = owner.post(rig.path("cancel"))
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled"), cancelled.text
    assert owner.get(rig.path()).json()["state"] == "cancelled"
    assert owner.delete(rig.path()).status_code == 204
    assert owner.get(rig.path()).status_code == 404
