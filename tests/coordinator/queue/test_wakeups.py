"""Wake-up messages: sent once, after the commit, and never a reason for a commit to fail."""

from pathlib import Path

import pytest

from coordinator.db.sessions import reading, utcnow, writing
from coordinator.models import Organization
from coordinator.queue import wakeups
from tests.support.logged import logged
from tests.support.places import lose_broker
from tests.support.queue import queued


def make_organization_and_nudge() -> None:
    with writing() as session:
        session.add(Organization(id="org_1", name="Bank", created_at=utcnow()))
        wakeups.nudge(session, wakeups.ADVANCE_ROUND, "rnd_1")


def test_a_message_leaves_after_the_commit(data_folder: Path) -> None:
    with writing() as session:
        wakeups.nudge(session, wakeups.ADVANCE_ROUND, "rnd_1")
        assert queued(wakeups.ADVANCE_ROUND) == []
    assert queued(wakeups.ADVANCE_ROUND) == [["rnd_1"]]


def test_what_is_asked_twice_is_sent_once(data_folder: Path) -> None:
    with writing() as session:
        for round_id in ("rnd_1", "rnd_2", "rnd_1"):
            wakeups.nudge(session, wakeups.ADVANCE_ROUND, round_id)
        wakeups.nudge(session, wakeups.RECONCILE)
    assert queued(wakeups.ADVANCE_ROUND) == [["rnd_1"], ["rnd_2"]]
    assert queued(wakeups.RECONCILE) == [[]]


def test_without_a_commit_nothing_is_sent(data_folder: Path) -> None:
    def fail() -> None:
        with writing() as session:
            wakeups.nudge(session, wakeups.ADVANCE_ROUND, "rnd_1")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert queued(wakeups.ADVANCE_ROUND) == []


def test_a_broker_that_fails_does_not_undo_the_commit(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_broker(monkeypatch)
    with logged() as lines:
        make_organization_and_nudge()
    with reading() as session:
        assert session.get(Organization, "org_1") is not None
    assert [line["event"] for line in lines()] == ["nudge_lost"]
