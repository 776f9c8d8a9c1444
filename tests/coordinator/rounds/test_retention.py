"""Retention of states and updates in the store."""

from sqlalchemy import select

from coordinator.db.sessions import reading
from coordinator.models import Hold, Job, Round
from tests.support.federation_rig import FederationRig


def held(part: str) -> set[str]:
    """Ids of those who hold something in this part."""
    with reading() as session:
        return set(session.scalars(select(Hold.holder).where(Hold.part == part)))


def rounds_of(holders: set[str]) -> list[int]:
    """Numbers of the rounds that the holders, rounds or jobs, belong to."""
    with reading() as session:
        jobs = [session.get(Job, holder) for holder in holders]
        ids = {job.round_id for job in jobs if job} | holders
        return sorted(row.number for row in session.scalars(select(Round)) if row.id in ids)


class TestRetention:
    def test_updates_and_states_are_let_go_and_adapters_are_not(self, rig: FederationRig) -> None:
        rig.running(rounds=4, retention={"keep_updates_rounds": 1, "keep_states_rounds": 2})
        rig.play(4)
        assert rounds_of(held("update")) == [4]
        assert rounds_of(held("instruction")) == [4]
        assert rounds_of(held("state")) == [3, 4]
        assert rounds_of(held("adapter")) == [1, 2, 3, 4]

    def test_a_state_that_the_next_round_starts_from_is_kept(self, rig: FederationRig) -> None:
        rig.running(rounds=3, retention={"keep_updates_rounds": 1, "keep_states_rounds": 1})
        rig.play(2)
        opened = rig.rounds()[-1]
        with reading() as session:
            held_digests = set(session.scalars(select(Hold.digest)))
        assert opened["start_digest"] in held_digests

    def test_every_tenth_state_is_a_landmark(self, rig: FederationRig) -> None:
        rig.running(rounds=12, retention={"keep_updates_rounds": 1, "keep_states_rounds": 1})
        rig.play(12)
        assert rounds_of(held("state")) == [10, 12]
