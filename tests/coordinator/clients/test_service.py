"""The client service as rounds and federations use it, over real sessions."""

from datetime import timedelta
from pathlib import Path

import pytest

from coordinator.clients import service as clients
from coordinator.db.sessions import reading, utcnow, writing
from coordinator.errors import Conflict
from coordinator.models import Client, Federation
from tests.coordinator.clients import scene

pytestmark = pytest.mark.usefixtures("data_folder")


def test_only_ready_training_clients_whose_worker_was_heard_of_can_be_drawn() -> None:
    now = utcnow()
    with writing() as session:
        owner = scene.organization(session)
        federation = scene.federation(session, owner.id)
        for fields in ({}, {"state": "registered"}, {"state": "out"}, {"evaluates_only": True}, {}):
            scene.client(session, federation, scene.worker(session, owner, heard_at=now), **fields)
        silent = scene.worker(session, owner, heard_at=now - timedelta(seconds=91))
        scene.client(session, federation, silent)
    with reading() as session:
        assert list(clients.alive_ordinals(session, federation.id, now)) == [0, 4]
        assert [client.ordinal for client in clients.ready_clients(session, federation.id)] == [0, 3, 4, 5]
        assert [client.ordinal for client in clients.by_ordinals(session, federation.id, [5, 1])] == [1, 5]


def test_a_described_client_is_ready_with_its_numbers(data_folder: Path) -> None:
    with writing() as session:
        owner = scene.organization(session)
        federation = scene.federation(session, owner.id)
        client = scene.client(session, federation, scene.worker(session, owner), state="registered", examples=None)
        clients.mark_ready(session, client, 120, 30)
    with reading() as session:
        kept = session.get_one(Client, client.id)
        assert (kept.state, kept.examples, kept.evaluation_examples, kept.version) == ("ready", 120, 30, 1)
        with pytest.raises(Conflict):
            clients.mark_ready(session, kept, 120, 30)
    assert scene.events_of(federation.id) == ["client.ready"]


def test_the_owner_takes_part_in_its_own_federation_from_the_start() -> None:
    with writing() as session:
        federation = scene.federation(session, scene.organization(session).id)
    with reading() as session:
        invitation = session.get_one(Federation, federation.id)
        assert scene.invitation_state(session, federation.id, invitation.organization_id) == "accepted"
