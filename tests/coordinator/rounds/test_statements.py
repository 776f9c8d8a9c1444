"""Statements over rounds are built once, since statements built per query wait for Python's collector."""

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.orm import Session

from coordinator.db.sessions import reading
from coordinator.rounds import repository

if TYPE_CHECKING:
    from tests.support.federation_rig import FederationRig

TIMES = 10
FEW_OBJECTS = 10
"""Statements made anew left 20 to 725."""
READINGS: dict[str, Callable[[Session, str, str], object]] = {
    "newest_of": lambda session, federation_id, round_id: repository.newest_of(session, [federation_id]),
    "attempts_at": lambda session, federation_id, round_id: repository.attempts_at(session, [round_id]),
    "jobs_of": lambda session, federation_id, round_id: repository.jobs_of(session, [round_id]),
    "accepted_ordinals": lambda session, federation_id, round_id: repository.accepted_ordinals(
        session, federation_id, [1]
    ),
}


@pytest.mark.parametrize("name", READINGS)
def test_a_reading_leaves_little_to_the_collector(rig: "FederationRig", name: str) -> None:
    rig.running()
    rig.play(rounds=1)
    round_id = rig.rounds()[0]["id"]

    def read() -> None:
        with reading() as session:
            assert READINGS[name](session, rig.federation_id, round_id)

    read()
    gc.collect()
    gc.disable()
    try:
        for _ in range(TIMES):
            read()
        assert gc.collect() < TIMES * FEW_OBJECTS
    finally:
        gc.enable()
