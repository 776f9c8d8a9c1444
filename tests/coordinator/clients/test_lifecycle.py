"""Life cycles of invitations and clients, over the full product of states and events."""

from itertools import product
from typing import ClassVar

import pytest

from coordinator.clients import lifecycle
from coordinator.clients.lifecycle import (
    CLIENT_EVENTS,
    CLIENT_STATES,
    INVITATION_EVENTS,
    INVITATION_STATES,
    ClientEvent,
    InvitationEvent,
)
from coordinator.errors import Conflict, Unprocessable
from federated.protocol import Capabilities, DatasetFacts

INVITATION = """
          invite   accept   decline  leave    ask_again remove
invited   -        accepted declined -        -         removed
accepted  -        -        -        left     invited   removed
declined  invited  -        -        -        -         -
left      invited  -        -        -        -         -
removed   invited  -        -        -        -         -
"""
CLIENT = """
           register   describe take_out restore    leave expel    readmit
registered -          ready    out      -          left  expelled -
ready      -          -        out      -          left  expelled -
out        -          -        -        registered left  expelled -
left       registered -        -        -          -     -        -
expelled   -          -        -        -          -     -        registered
"""


def read(table: str) -> dict[tuple[str, str], str]:
    head, *rows = (line.split() for line in table.strip().splitlines())
    return {(row[0], event): cell for row in rows for event, cell in zip(head, row[1:], strict=True)}


@pytest.mark.parametrize(("state", "event"), list(product(INVITATION_STATES, INVITATION_EVENTS)))
def test_an_invitation_moves_as_the_table_says_and_no_other_way(state: str, event: InvitationEvent) -> None:
    wanted = read(INVITATION)[state, event]
    if wanted != "-":
        assert lifecycle.move_invitation(state, event) == wanted
        return
    with pytest.raises(Conflict) as refusal:
        lifecycle.move_invitation(state, event)
    assert refusal.value.code == "illegal_transition"
    assert f"is {state} has no move {event}" in refusal.value.detail


@pytest.mark.parametrize(("state", "event"), list(product(CLIENT_STATES, CLIENT_EVENTS)))
def test_a_client_moves_as_the_table_says_and_no_other_way(state: str, event: ClientEvent) -> None:
    wanted = read(CLIENT)[state, event]
    if wanted != "-":
        assert lifecycle.move_client(state, event) == wanted
        return
    with pytest.raises(Conflict) as refusal:
        lifecycle.move_client(state, event)
    assert refusal.value.code == "illegal_transition"
    assert f"is {state} has no move {event}" in refusal.value.detail


@pytest.mark.parametrize("state", ["draft", "running", "paused"])
def test_who_takes_part_may_change_while_a_federation_lives(state: str) -> None:
    assert lifecycle.check_live(state) is None


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
def test_who_takes_part_is_settled_when_a_federation_has_ended(state: str) -> None:
    with pytest.raises(Conflict) as refusal:
        lifecycle.check_live(state)
    assert refusal.value.code == "federation_ended"


class TestDataset:
    definition: ClassVar = {"task": {"task": "sequence_classification"}}

    def test_one_that_the_worker_offers_is_taken(self) -> None:
        offered = Capabilities(datasets=(DatasetFacts(name="tickets"),))
        assert lifecycle.check_dataset(offered, "tickets", self.definition) is None

    def test_an_unknown_one_is_refused_with_those_that_are_known(self) -> None:
        offered = Capabilities(datasets=(DatasetFacts(name="tickets"), DatasetFacts(name="notes")))
        with pytest.raises(Unprocessable) as refusal:
            lifecycle.check_dataset(offered, "letters", self.definition)
        detail = "the worker offers no data set 'letters'; it offers: notes, tickets"
        assert refusal.value.errors == [{"pointer": "/dataset", "detail": detail}]

    def test_one_for_another_task_is_refused(self) -> None:
        offered = Capabilities(datasets=(DatasetFacts(name="tickets", task="causal_lm"),))
        with pytest.raises(Unprocessable) as refusal:
            lifecycle.check_dataset(offered, "tickets", self.definition)
        assert refusal.value.code == "dataset_task"


def test_settings_that_the_algorithm_does_not_know_are_refused() -> None:
    definition = {"algorithm": "fedavg", "config": {}}
    assert lifecycle.check_settings(definition, {}) is None
    with pytest.raises(Unprocessable) as refusal:
        lifecycle.check_settings(definition, {"rank": 4})
    assert [error["pointer"] for error in refusal.value.errors] == ["/settings"]
    assert "'rank'" in refusal.value.detail
