"""PostgreSQL or Redis is gone for a while: said by whoever is asked, and over when they are back. Nobody restarts."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from redis import Redis

from tests.faults.adapters import in_round, whole_adapter
from tests.support.engines import Server
from tests.support.nodes import END_SECONDS, POLLING_SECONDS, Consortium, consortium
from tests.support.places import Places, Servers
from tests.support.service import created, problem

pytestmark = pytest.mark.engines

ROUNDS = 3
CONFIG = {"local_steps": 60, "batch_size": 8, "learning_rate": 0.02}
OUTAGE_SECONDS = float(os.environ.get("FEDLOOM_TESTS_OUTAGE_SECONDS", "5"))
ROLES = ("web", "background", "beat")
STUCK_SECONDS = 2.0


@pytest.fixture(scope="module")
def nodes(engine: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """All of `coordinator up` over the big engines, and two agents."""
    pace = {"claim_seconds": 3, "reconcile_seconds": 1, "process_renew_seconds": 2}
    with consortium(tmp_path_factory.mktemp("engines"), ["north", "south"], **pace) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(nodes: Consortium) -> bytes:
    return whole_adapter(nodes, nodes.start(rounds=ROUNDS, config=CONFIG), ROUNDS)


@pytest.fixture
def servers(engine: Places) -> Servers:
    assert isinstance(engine, Servers)
    return engine


@pytest.fixture(autouse=True)
def nobody_restarts(nodes: Consortium) -> Iterator[None]:
    """Whatever happens in a test: afterwards the same processes run as before."""
    before = alive(nodes)
    yield
    assert alive(nodes) == before


def alive(nodes: Consortium) -> dict[str, Any]:
    """The process ids of the installation and of its agents, and how those that ended did."""
    pids = {role: nodes.installation.pid_of(role) for role in ROLES}
    return pids | {node.name: node.process and (node.process.pid, node.process.poll()) for node in nodes.nodes}


@contextmanager
def gone(server: Server) -> Iterator[Callable[[], bool]]:
    """No such server inside the block, nor until the outage has lasted; yields whether it lasts."""
    server.stop()
    until = time.monotonic() + OUTAGE_SECONDS
    try:
        yield lambda: time.monotonic() < until
        time.sleep(max(0.0, until - time.monotonic()))
    finally:
        server.start()


def missing(nodes: Consortium) -> list[str]:
    """What `/readyz` finds missing."""
    found: list[str] = nodes.owner.http.get("/readyz").json().get("missing", [])
    return found


def ready_again(nodes: Consortium) -> None:
    """Waits until nothing is missing."""
    until(nodes, lambda: not missing(nodes))


class TestTheDatabase:
    def test_gone_for_a_while_is_said_and_changes_no_bit(
        self, nodes: Consortium, undisturbed: bytes, servers: Servers
    ) -> None:
        federation_id = nodes.start(rounds=ROUNDS, config=CONFIG)
        nodes.wait(federation_id, in_round(2))
        path, http = f"/v1/federations/{federation_id}", nodes.owner.http
        with gone(servers.postgres) as lasts:
            while lasts():
                for refused in (http.get(path), http.post("/v1/federations", json=nodes.definition())):
                    assert problem(refused, 503, "database_unavailable")
                    assert int(refused.headers["retry-after"]) > 0
                found = problem(http.get("/readyz"), 503, "not_ready")
                assert "database" in found["missing"]
                assert {"store", "broker"}.isdisjoint(found["missing"])
                assert http.get("/healthz").status_code == 200
                time.sleep(POLLING_SECONDS)
        assert whole_adapter(nodes, federation_id, ROUNDS) == undisturbed
        ready_again(nodes)


class TestTheBroker:
    def test_gone_for_a_while_is_said_and_changes_no_bit(
        self, nodes: Consortium, undisturbed: bytes, servers: Servers
    ) -> None:
        federation_id = nodes.start(rounds=ROUNDS, config=CONFIG)
        nodes.wait(federation_id, in_round(2))
        http = nodes.owner.http
        with gone(servers.redis) as lasts:
            while lasts():
                assert nodes.get(federation_id)["state"] == "running"
                created(http.post("/v1/federations", json=nodes.definition()))
                assert problem(http.get("/readyz"), 503, "not_ready")["missing"] == ["broker"]
                time.sleep(POLLING_SECONDS)
        assert whole_adapter(nodes, federation_id, ROUNDS) == undisturbed
        ready_again(nodes)

    def test_gone_while_all_are_at_work_is_heard_again(self, nodes: Consortium, servers: Servers) -> None:
        place = nodes.installation.environment
        database = place["FEDLOOM_DATABASE_URL"].replace("+psycopg", "")
        with psycopg.connect(database) as holding, Redis.from_url(place["FEDLOOM_BROKER_URL"]) as broker:
            # What beat sends to be renewed waits for this: two tasks begun, two taken and not acknowledged.
            holding.execute("LOCK TABLE processes IN SHARE MODE")
            until(nodes, lambda: len(stuck(broker)) == 2)
            with killed(servers.redis):
                holding.rollback()
                until(nodes, lambda: nodes.installation.text_of_log().count("Couldn't ack") >= 2)
            since = time.time()
            until(nodes, lambda: beat_heard(holding) > since)
        nodes.end(nodes.start(rounds=1))
        ready_again(nodes)


@contextmanager
def killed(server: Server) -> Iterator[None]:
    """No such server inside the block; whatever comes of it, those after it have one."""
    server.kill()
    try:
        yield
    finally:
        server.start()


def stuck(broker: Redis) -> set[Any]:
    """The messages that are taken and stay so: another task's may be among those taken at one moment."""
    before = set(broker.hkeys("unacked"))
    time.sleep(STUCK_SECONDS)
    return before & set(broker.hkeys("unacked"))


def until(nodes: Consortium, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + END_SECONDS
    while not holds():
        assert time.monotonic() < deadline, nodes.story()
        time.sleep(POLLING_SECONDS)


def beat_heard(connection: psycopg.Connection[Any]) -> float:
    """When a background process last took what beat sent, in seconds since 1970."""
    row = connection.execute("SELECT extract(epoch FROM renewed_at) FROM processes WHERE role = 'beat'").fetchone()
    connection.rollback()
    return float(row[0]) if row else 0.0
