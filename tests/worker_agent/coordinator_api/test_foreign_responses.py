"""Foreign responses: the agent recognizes them and tells the node's owner what to change."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from federated.failures import sentence
from federated.protocol import PROTOCOL_VERSION
from tests.worker_agent.faults import Fault
from tests.worker_agent.hostile_coordinator import HostileCoordinator, Reply, head, hostile, whole
from tests.worker_agent.recording_coordinator import RecordingCoordinator
from tests.worker_agent.running_agent import CHILD, offer, running, wait_until, waiting_in_outbox
from worker_agent.__main__ import TOKEN_VARIABLE, app
from worker_agent.coordinator_api.client import CoordinatorClient
from worker_agent.coordinator_api.connection import ATTEMPTS, Connection, open_http
from worker_agent.coordinator_api.foreign_responses import redirect_error
from worker_agent.coordinator_api.identity import Identity
from worker_agent.display import NoBars
from worker_agent.errors import AgentError, CoordinatorAway, NoCoordinator, is_transient
from worker_agent.runtime.agent import Agent
from worker_agent.settings import AgentSettings

PAGE = b"<!DOCTYPE html><html><body>Welcome</body></html>"
HTML = "text/html; charset=utf-8"
IN_BETWEEN = "`url` names something else, or a proxy or a login page is in between"
SUBMIT, FAIL, CHUNK = "POST /v1/jobs/job_1/submit", "POST /v1/jobs/job_1/fail", "PUT .*/chunks/.*"


def page(status: str, body: bytes = PAGE, **headers: object) -> Reply:
    return whole(status, body, **{"Content_Type": HTML, **headers})


def moved(status: str, base: str) -> Reply:
    """Sends each request to its own path below another base, as a proxy that moved does."""

    def reply(asked: str, connection: socket.socket) -> None:
        page(status, Location=base + asked.split()[1])(asked, connection)

    return reply


def problem(**fields: object) -> Reply:
    """A refusal as a coordinator writes them."""
    body = json.dumps({"title": "Not Found", "status": 404, "code": "not_found", **fields}).encode()
    return whole("404 Not Found", body, Content_Type="application/problem+json")


STRANGERS = {
    "moved": (moved("301 Moved", "https://fedloom.example.org"), 'put url = "https://fedloom.example.org" into'),
    "moved below a path": (moved("308 Moved", "https://a.example/b"), 'put url = "https://a.example/b" into'),
    "moved to its root": (page("301 Moved", Location="https://b.example/"), 'put url = "https://b.example" into'),
    "login": (
        page("302 Found", Location="https://sso.example/login?back=secret"),
        f"to https://sso.example/login, which is no Fedloom coordinator's: {IN_BETWEEN}",
    ),
    "itself": (moved("302 Found", ""), IN_BETWEEN),
    "nowhere": (page("302 Found"), f"was redirected (302) to no address: {IN_BETWEEN}"),
    "portal": (
        page("200 OK"),
        f"responds with a web page (200 text/html), not with a Fedloom coordinator: {IN_BETWEEN}",
    ),
    "portal without a type": (whole("200 OK", b"\n" + PAGE), "responds with a web page (200)"),
    "not found": (page("404 Not Found"), "responds 404 text/html, unlike a Fedloom coordinator"),
    "no method": (page("405 Method Not Allowed"), f"unlike a Fedloom coordinator: {IN_BETWEEN}"),
    "login wanted": (page("401 Unauthorized"), "a proxy in between requires a login"),
    "forbidden": (page("403 Forbidden"), "a proxy in between forbids it"),
    "login of a network": (page("511 Network Authentication Required"), "this network requires a login"),
    "another service's error": (
        whole("404 Not Found", b'{"detail": "Not Found"}', Content_Type="application/json"),
        "responds 404 application/json",
    ),
    "another path": (problem(detail="Not Found"), "does `url` end with a path too many"),
    "another service": (
        whole("200 OK", b'{"status": "UP"}', Content_Type="application/json"),
        "does a Fedloom coordinator of this version respond at that `url`?",
    ),
}
PERMANENT = pytest.mark.parametrize(("reply", "word"), STRANGERS.values(), ids=list(STRANGERS))


def config(folder: Path, url: str) -> Path:
    file = folder / "worker-agent.toml"
    file.write_text(f'url = "{url}"\nfolder = "worker"\ndevice = "cpu"\n')
    return file


def command(name: str, folder: Path, server: HostileCoordinator) -> Result:
    runner = CliRunner(env={"COLUMNS": "500", TOKEN_VARIABLE: "fle_0123456789abcdef"})
    return runner.invoke(app, [name, "--config", str(config(folder, server.url))])


class TestDoctor:
    @PERMANENT
    def test_says_what_answers_and_what_to_change(self, reply: Reply, word: str, tmp_path: Path) -> None:
        with hostile(reply) as server:
            result = command("doctor", tmp_path, server)
        (line,) = [line for line in result.output.splitlines() if line.startswith("FAILED url: ")]
        assert result.exit_code == 1
        assert line.startswith(f"FAILED url: {server.url}/")
        assert word in line
        assert "secret" not in line
        assert "coordinator knows this worker" not in result.output

    def test_does_not_advise_to_go_on_in_the_clear(self) -> None:
        request = httpx.Request("GET", "https://a.example/healthz")
        answer = httpx.Response(301, headers={"Location": "http://a.example/healthz"}, request=request)
        told = str(redirect_error(answer, httpx.URL("https://a.example")))
        assert "to http://a.example, without encryption: the operator of https://a.example must fix that" in told

    def test_names_the_versions_to_a_node_that_is_not_enrolled(
        self, tmp_path: Path, coordinator: RecordingCoordinator
    ) -> None:
        arguments = ["doctor", "--config", str(config(tmp_path, coordinator.url))]
        said = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments).output
        assert f"ok     coordinator: version 1.0; protocol {PROTOCOL_VERSION}" in said
        coordinator.protocol_version += 1
        said = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments).output
        assert f"FAILED coordinator: version 1.0 speaks protocol {PROTOCOL_VERSION + 1}" in said


@pytest.mark.parametrize("name", ["moved", "portal"])
def test_enrollment_ends_with_the_same_words(name: str, tmp_path: Path) -> None:
    reply, word = STRANGERS[name]
    with hostile(reply) as server:
        result = command("enroll", tmp_path, server)
    assert result.exit_code == 1
    assert result.output.startswith(f"error: {server.url}/v1/workers/enroll ")
    assert word in result.output
    assert len(server.heads) <= ATTEMPTS


class TestRun:
    @pytest.mark.parametrize("name", ["moved", "portal", "another service"])
    def test_ends_where_it_could_not_begin(self, name: str, settings: AgentSettings, identity: Identity) -> None:
        reply, word = STRANGERS[name]
        settings.folder.mkdir(exist_ok=True)
        with hostile(reply) as server, open_http(settings, server.url) as http:
            with pytest.raises(AgentError) as ended:
                Agent(settings, identity, http, NoBars(), CHILD).run()
            assert len(server.heads) <= ATTEMPTS
        assert word in str(ended.value)

    def test_tells_it_in_one_line_and_its_exit_status(self, identity: Identity, settings: AgentSettings) -> None:
        reply, word = STRANGERS["moved"]
        with hostile(reply) as server:
            file = config(settings.folder.parent, server.url)
            done = subprocess.run(
                [sys.executable, "-m", "worker_agent", "run", "--config", str(file)],
                capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert (done.returncode, word in line) == (1, True), done.stderr

    def test_rests_while_it_runs_and_loses_nothing(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        """More pages than one call is tried: the finished job waits, and is handed in once the address is mended."""
        offer(coordinator)
        coordinator.fail(SUBMIT, *(Fault(status, page=True) for status in (404, 200, 403, 405, 404, 200)))
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count(SUBMIT) == 7)
            wait_until(lambda: not waiting_in_outbox(settings))
        assert coordinator.count(FAIL) == 0

    def test_tells_a_job_that_a_proxy_finds_too_large_as_failed_and_sends_it_once(
        self, settings: AgentSettings, identity: Identity, http: httpx.Client, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail(CHUNK, *[Fault(413, page=True)] * 20)
        offer(coordinator)
        with running(settings, identity, http):
            wait_until(lambda: coordinator.count(FAIL) == 1)
            wait_until(lambda: not waiting_in_outbox(settings))
        failure = coordinator.body_of(FAIL)
        assert (failure["code"], failure["transient"]) == ("upload_too_large_for_proxy", False)
        assert "lowers chunk_bytes" in sentence(failure["code"])
        assert coordinator.count(CHUNK) == 1
        assert coordinator.count(SUBMIT) == 0


class TestABodyThatIsTooLarge:
    def test_of_a_chunk_names_who_can_mend_it(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator, tmp_path: Path
    ) -> None:
        coordinator.fail(CHUNK, Fault(413, page=True))
        (tmp_path / "update").write_bytes(b"0123456789")
        with pytest.raises(CoordinatorAway) as refused:
            client.upload(tmp_path / "update", "sha256:" + "0" * 64)
        told = str(refused.value)
        assert "refuses a body of 10 bytes (413); its operator must raise the limit" in told
        assert "(nginx: client_max_body_size), or the coordinator's operator lower chunk_bytes" in told
        assert not is_transient(refused.value)

    def test_of_anything_else_says_nothing_of_chunks(self) -> None:
        with hostile(page("413 Request Entity Too Large")) as server, open_http(AgentSettings(), server.url) as http:
            with pytest.raises(NoCoordinator) as refused:
                Connection(http, None).send("POST", "/v1/jobs/job_1/submit", repeat=True, content=bytes(2_000_000))
        assert "a proxy in front of the coordinator refuses a body of 2000000 bytes" in str(refused.value)
        assert "chunk" not in str(refused.value)
        assert len(server.heads) == 1


class TestWhatMayPass:
    @pytest.mark.parametrize("status", ["408 Timeout", "429 Too Many", "500 Oops", "502 Bad", "503 Away", "522 Cut"])
    def test_is_away(self, status: str) -> None:
        with hostile(page(status)) as server, open_http(AgentSettings(), server.url) as http:
            with pytest.raises(CoordinatorAway) as away:
                Connection(http, None).once("GET", "/healthz")
        assert is_transient(away.value)


class TestAProxyOfTheNetwork:
    @pytest.mark.parametrize(
        ("status", "word"),
        [
            ("407 Proxy Authentication Required", "requires a user and a password"),
            ("403 Forbidden", "name it in NO_PROXY"),
            ("502 Bad Gateway", None),
        ],
    )
    def test_that_refuses_to_connect_is_named(
        self, status: str, word: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with hostile(lambda asked, connection: connection.sendall(head(status, Content_Length=0))) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            monkeypatch.delenv("NO_PROXY", raising=False)
            monkeypatch.delenv("no_proxy", raising=False)
            with open_http(AgentSettings(), "https://fedloom.example.org") as http:
                with pytest.raises(CoordinatorAway) as away:
                    Connection(http, None).once("GET", "/healthz")
        assert is_transient(away.value) == (word is None)
        assert (word or "cannot reach the coordinator") in str(away.value)
        assert proxy.heads[0].startswith("CONNECT fedloom.example.org:443")
