"""Planted faults are found: a 5xx, a canary, a line of a log, growth, a broken rule, a stopped agent."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from fastapi import FastAPI, Request, Response
from hypothesis import strategies as st

from coordinator.app import create_app
from tests.coordinator.contract.building import Builder
from tests.coordinator.contract.conftest import NOBODY_WAITS
from tests.fuzz import coordinator, roles
from tests.fuzz.exchange import exchange
from tests.fuzz.growth import Growth
from tests.fuzz.judging import Canaries, LogReader, faults
from tests.fuzz.node import Node
from tests.fuzz.record import MOST_ALIKE, Finding, Record
from tests.fuzz.scene import Abandoned, Scene
from tests.fuzz.turns import Turn
from tests.support.federation_rig import FederationRig
from tests.support.kept_rows import KeptRows
from tests.support.places import places, settled
from tests.support.service import Service, serving
from tests.support.web_thread import running
from tests.worker_agent.hostile_coordinator import hostile, whole
from tests.worker_agent.recording_coordinator import RecordingCoordinator
from tests.worker_agent.recording_coordinator import serving as serving_agents

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("engine")]

SECRET = "0123456789abcdef0123"
ID = "job_0123456789abcdef"
SECONDS = 8.0


@pytest.fixture
def turn(tmp_path: Path) -> Turn:
    lines: list[dict[str, Any]] = []
    made = Turn("roles", 0, SECONDS, Record(0, lines.append), tmp_path)
    made.begin()
    return made


def kinds(turn: Turn) -> set[tuple[str, str]]:
    """Kinds of findings, and who met them."""
    return {(kind, who) for kind, who, _ in turn.record.findings}


class TestAnAnswer:
    @pytest.fixture
    def ask(self, data_folder: Path) -> Iterator[httpx.Client]:
        """An app with all that no coordinator answers."""
        app = FastAPI()
        app.get("/boom")(lambda: Response("", 500))
        app.get("/nan")(lambda: Response('{"loss": NaN}', media_type="application/json"))
        app.get("/header")(lambda: Response("{}", headers={"X-Note": f"key {SECRET}"}))
        app.get("/name/{named}")(lambda named: {"job": ID})
        with running(app) as url, httpx.Client(base_url=url, trust_env=False) as http:
            yield http

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("/boom", [("5xx", "500")]),
            ("/nan", [("answer", "JSON that only Python reads")]),
            ("/header", [("canary", "a key")]),
            ("/name/other", [("canary", ID)]),
            (f"/name/{ID}", []),
        ],
    )
    def test_is_judged_by_itself(self, ask: httpx.Client, path: str, expected: list[tuple[str, str]]) -> None:
        canaries = Canaries({"a key": SECRET}, hidden={"stranger": {ID}})
        assert list(faults("stranger", exchange(ask.get(path)), canaries)) == expected

    def test_may_name_to_others_what_is_hidden_from_one(self, ask: httpx.Client) -> None:
        assert list(faults("owner", exchange(ask.get("/name/x")), Canaries({}, hidden={"stranger": {ID}}))) == []


def test_a_secret_that_was_shown_once_is_a_canary_from_then_on(data_folder: Path) -> None:
    app = FastAPI()
    app.get("/again")(lambda: {"key": f"flk_key_{SECRET}"})
    canaries = Canaries({})
    with running(app) as url, httpx.Client(base_url=url, trust_env=False) as http:
        first = exchange(http.get("/again"))
        assert list(faults("owner", first, canaries)) == []
        canaries.keep(first)
        assert [kind for kind, _ in faults("owner", exchange(http.get("/again")), canaries)] == ["canary"]


def test_a_log_holds_json_without_errors_and_secrets(turn: Turn, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        f'{{"level": "info", "key": "{SECRET}"}}\n{{"level": "error", "event": "broke"}}\nTraceback\n{{"le'
    )
    reader = LogReader("web", log)
    reader.judge(turn, Canaries({"a key": SECRET}))
    reader.judge(turn, Canaries({"a key": SECRET}))
    expected = {
        ("canary", "web", "a key in a log"),
        ("log", "web", "broke"),
        ("log", "web", "a line that is not JSON"),
    }
    assert dict(turn.record.findings) == dict.fromkeys(expected, 1)


GROWING = """
import sys
kept = [bytearray(1024)]
for line in sys.stdin:
    kept.append(bytes([1]) * (int(line) * 1024**2))
    print(flush=True)
"""


@pytest.mark.parametrize(("mib", "found"), [(1, set()), (90, {("growth", "a process")})])
def test_a_process_that_grows_is_found(turn: Turn, mib: int, found: set[tuple[str, str]]) -> None:
    command = [sys.executable, "-c", GROWING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def grow(by_mib: int) -> None:
            print(by_mib, file=process.stdin, flush=True)
            assert process.stdout is not None
            process.stdout.readline()

        grow(1)
        growth = Growth({"a process": lambda: process.pid})
        turn.seconds = 0
        growth.look(turn)
        grow(mib)
        growth.judge(turn)
        process.stdin.close()
    assert kinds(turn) == found
    assert mib <= turn.record.growth_mib["a process"] + 1
    growth.judge(turn)
    assert kinds(turn) == found | {("ended", "a process")}


def test_those_alike_are_printed_a_few_times_and_all_counted() -> None:
    lines: list[dict[str, Any]] = []
    record = Record(7, lines.append)
    for number in range(2 * MOST_ALIKE):
        record.add(Finding("5xx", "owner", "show_job: 500", {"number": number}, "text"), batch=3)
    assert [line["sent"]["number"] for line in lines] == list(range(MOST_ALIKE))
    assert (lines[0]["seed"], lines[0]["batch"]) == (7, 3)
    assert record.summary(1.0)["findings"] == 2 * MOST_ALIKE


def planted() -> FastAPI:
    """The coordinator with two faults."""
    app = create_app()

    @app.middleware("http")
    async def plant(request: Request, go_on: Any) -> Response:
        answer: Response = await go_on(request)
        if request.url.path == "/v1/algorithms":
            return Response("", 500)
        if request.url.path.startswith("/v1/federations/"):
            answer.headers["X-Note"] = SECRET
        return answer

    return app


@contextmanager
def asker(turn: Turn) -> Iterator[roles.Asker]:
    """One over a planted coordinator."""
    place = places().migrated(turn.folder / "data")
    with settled({**place, **NOBODY_WAITS}), serving(planted()) as service, requests.Session() as session:
        world = Builder(FederationRig(service)).world()
        signer = service.new_worker(world.home, "who signs").identity
        yield roles.Asker(turn, world.keep(), signer, Canaries({"a key": SECRET}), session)


def test_every_role_meets_what_is_planted_in_the_coordinator(turn: Turn) -> None:
    with asker(turn) as ask:
        turn.begin()

        def until_found(data: st.DataObject) -> None:
            ask.one(data)
            if {kind for kind, _ in kinds(turn)} >= {"5xx", "canary"}:
                turn.seconds = 0

        turn.seconds = 120
        turn.draw(until_found, 100, lambda: None)
    found = {(kind, about) for kind, _, about in turn.record.findings}
    assert ("5xx", "list_algorithms: 500") in found
    assert {kind for kind, _ in found} == {"5xx", "canary"}


class TestALife:
    @pytest.fixture
    def scene(self, turn: Turn, service: Service) -> Scene:
        return Scene(turn, FederationRig(service), [], Canaries({}), [], lambda: None, requests.Session(), KeptRows())

    @pytest.mark.parametrize(("state", "kind"), [("running", "stuck"), ("completed", "broken")])
    def test_that_ends_otherwise_than_it_should_is_found(self, scene: Scene, state: str, kind: str) -> None:
        def finish() -> None:
            raise AssertionError("it waits for nobody")

        with pytest.raises(Abandoned):
            scene.end(lambda: state, finish)
        assert list(scene.turn.record.findings) == [(kind, "hostile worker", "it waits for nobody")]

    def test_that_broke_a_rule_is_not_brought_to_its_end(self, scene: Scene) -> None:
        def live() -> None:
            try:
                raise AssertionError("an update is counted twice")
            finally:
                scene.end(lambda: "completed", lambda: pytest.fail("it ended"))

        with pytest.raises(Abandoned):
            live()
        assert list(scene.turn.record.findings) == [("broken", "hostile worker", "an update is counted twice")]


class TestAnAgent:
    def test_that_sends_a_row_is_found(self) -> None:
        sent = RecordingCoordinator(bodies=[{"code": "x"}, {"detail": "a Canary b"}], headers=["{'x': 'key'}"])
        found = [
            name for name, _ in coordinator.canaries(sent, {"a row": "CANARY", "a key": "key", "another": "none"})
        ]
        assert found == ["a row", "a key"]

    def test_that_is_there_no_more_is_found(self, turn: Turn, tmp_path: Path) -> None:
        with serving_agents(RecordingCoordinator()) as at, hostile(whole("200 OK", b"{}")) as elsewhere:
            node = Node(tmp_path / "node", at)
            node.log.touch()
            node.process = subprocess.Popen([sys.executable, "-c", ""])
            node.process.wait()
            trial = coordinator.Trial(turn, at, node, elsewhere)
            httpx.get(elsewhere.url, trust_env=False)
            stray = node.home / "working" / "stray"
            stray.touch()
            job = trial.jobs[0]
            assert trial.live_through(coordinator.Batch([(b"{}", b"")], [], job)) == coordinator.NOTHING
        assert {about for _, _, about in turn.record.findings} == {
            "a good job after others: nothing",
            "the agent",
            "a file outside: working/stray",
            "a request elsewhere",
        }
