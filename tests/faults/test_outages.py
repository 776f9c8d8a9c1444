"""Clocks that are ten minutes off, and a database that somebody else holds: work goes on, with the same bits."""

import json
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from tests.faults.adapters import ADAPTER, in_round, whole_adapter
from tests.support import wrong_clock
from tests.support.nodes import Consortium, Node
from tests.support.service import created

pytestmark = pytest.mark.sqlite

ROUNDS = 3
CONFIG = {"local_steps": 60, "batch_size": 8, "learning_rate": 0.02}
OFF_SECONDS = {"north": 600.0, "south": -600.0}
LEASE_SECONDS = 5.0
HELD_SECONDS = 5.0


@pytest.fixture(scope="module")
def undisturbed(nodes: Consortium) -> bytes:
    """The adapter of a run in which all clocks were right and the database was free."""
    return whole_adapter(nodes, nodes.start(rounds=ROUNDS, config=CONFIG), ROUNDS)


@pytest.fixture(scope="module")
def wrong_clocks(
    nodes: Consortium, undisturbed: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Consortium]:
    """The agents are on machines whose clocks are ten minutes off, one ahead and one behind."""
    folder = tmp_path_factory.mktemp("clocks")
    for node in nodes.nodes:
        node.restart(wrong_clock.environment(folder / node.name, OFF_SECONDS[node.name]))
    yield nodes
    for node in nodes.nodes:
        node.restart({})


def refused_for_the_time(nodes: Consortium, offset: int) -> int:
    """How many requests of workers were answered 401 since the log was so long."""
    lines = nodes.installation.log.read_bytes()[offset:].decode().splitlines()
    requests = [json.loads(line) for line in lines if '"event": "request"' in line and line.endswith("}")]
    return sum(request["status"] == 401 for request in requests)


class TestClocksTenMinutesOff:
    def test_change_no_bit(self, nodes: Consortium, undisturbed: bytes, request: pytest.FixtureRequest) -> None:
        offset = nodes.installation.log.stat().st_size
        request.getfixturevalue("wrong_clocks")
        assert whole_adapter(nodes, nodes.start(rounds=ROUNDS, config=CONFIG), ROUNDS) == undisturbed
        refused = refused_for_the_time(nodes, offset)
        assert len(nodes.nodes) <= refused <= 4 * len(nodes.nodes), "each learns the time from its first refusals"

    def test_make_no_lease_longer(self, wrong_clocks: Consortium, undisturbed: bytes) -> None:
        """Ten minutes longer, if the clock of the worker had a say: this waits for less."""
        nodes, node = wrong_clocks, wrong_clocks.nodes[0]
        federation_id = nodes.start(rounds=ROUNDS, config=CONFIG, lease_seconds=LEASE_SECONDS, max_attempts=10)
        until_attempt(nodes, federation_id, node, lambda job: job["state"] == "leased")
        send(node, signal.SIGSTOP)
        try:
            until_attempt(nodes, federation_id, node, lambda job: job["attempt"] > 1)
        finally:
            send(node, signal.SIGCONT)
        nodes.end(federation_id)
        assert nodes.file(federation_id, ADAPTER) == undisturbed


def send(node: Node, number: signal.Signals) -> None:
    """To the agent alone, without what it started."""
    assert node.process is not None
    node.process.send_signal(number)


def until_attempt(
    nodes: Consortium, federation_id: str, node: Node, holds: Callable[[Mapping[str, Any]], bool]
) -> None:
    """Waits until this holds of the node's job in the first round."""

    def of_its_job(federation: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> bool:
        assert len(rounds) < 2, "the job was done before it could be stopped"
        jobs = nodes.get(federation_id, "rounds", "1", "jobs")["items"] if rounds else []
        return any(holds(job) for job in jobs if job["ordinal"] == nodes.nodes.index(node))

    nodes.wait(federation_id, of_its_job)


class TestADatabaseThatAnotherProcessHolds:
    def test_makes_writers_wait_and_changes_no_bit(self, nodes: Consortium, undisturbed: bytes) -> None:
        before = {role: nodes.installation.pid_of(role) for role in ("web", "background", "beat")}
        federation_id = nodes.start(rounds=ROUNDS, config=CONFIG)
        nodes.wait(federation_id, in_round(2))
        file = nodes.installation.folder / "coordinator.sqlite"
        with closing(sqlite3.connect(file, timeout=30, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with ThreadPoolExecutor(1) as pool:
                draft = pool.submit(nodes.owner.http.post, "/v1/federations", json=nodes.definition())
                until = time.monotonic() + HELD_SECONDS
                while time.monotonic() < until:
                    assert nodes.get(federation_id)["state"] == "running", "reading goes on"
                    time.sleep(0.2)
                assert not draft.done()
                other.execute("ROLLBACK")
                created(draft.result())
        assert whole_adapter(nodes, federation_id, ROUNDS) == undisturbed
        assert {role: nodes.installation.pid_of(role) for role in before} == before
