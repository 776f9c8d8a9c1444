"""The reconciler's selection among several federations, and the number of its queries."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, event

from coordinator.db.sessions import reading, utcnow
from coordinator.federations import service as federations
from tests.support.federation_rig import FederationRig


def overdue() -> tuple[list[str], list[str]]:
    """Ids of the federations and rounds in which something is due."""
    with reading() as session:
        return federations.overdue(session, utcnow())


@contextmanager
def statements() -> Iterator[list[str]]:
    """What this thread asks of the database meanwhile."""
    seen, here = [], threading.get_ident()

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        if threading.get_ident() == here:
            seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


class TestOverdue:
    def test_each_federation_is_judged_by_its_own_rows(self, rig: FederationRig) -> None:
        trained = rig.running()
        round_id = rig.rounds()[0]["id"]
        rig.running()
        rig.create()
        described = rig.join(rig.actor())
        rig.post("start")
        assert overdue() == ([], [])
        assert trained[0].work() == "train"
        assert described.work() == "describe"
        rig.drop_messages()
        assert overdue() == ([rig.federation_id], [round_id])

    def test_who_registered_unheard_is_found(self, rig: FederationRig) -> None:
        rig.running()
        rig.running()
        rig.join(rig.actor())
        rig.drop_messages()
        assert overdue() == ([rig.federation_id], [])
        rig.reconcile()
        assert overdue() == ([], [])

    def test_more_federations_are_no_more_statements(self, rig: FederationRig) -> None:
        rig.running()
        with statements() as of_one:
            overdue()
        for _ in range(3):
            rig.running()
        with statements() as of_four:
            overdue()
        assert len(of_four) == len(of_one) < 15


def test_a_client_is_asked_to_describe_its_data_once(rig: FederationRig) -> None:
    rig.create()
    for _ in range(2):
        rig.join(rig.actor())
    rig.post("start")
    asked = [actor.lease() for actor in rig.actors]
    rig.reconcile()
    again = [actor.lease() for actor in rig.actors]
    assert [lease and lease["kind"] for lease in asked] == ["describe", "describe"]
    assert [lease and lease["job_id"] for lease in again] == [lease and lease["job_id"] for lease in asked]
