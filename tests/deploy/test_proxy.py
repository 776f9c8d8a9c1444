"""Configuration of the load balancer and the units, checked by nginx and systemd where these are installed."""

import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from coordinator.addresses import free_port
from coordinator.settings import Settings
from tests.deploy.deployed import DEPLOY, DROP_INS, UNITS
from tests.support.service import Bearer, Service, created
from worker_agent.coordinator_api.connection import open_http
from worker_agent.settings import AgentSettings

NGINX, ANALYZE, OPENSSL = (shutil.which(name) for name in ("nginx", "systemd-analyze", "openssl"))
TEXT = (DEPLOY / "nginx/nginx.conf").read_text("utf-8")
LONGEST_POLL_SECONDS = 30
START_SECONDS = 20.0
MOST_EXPOSED = 20
"""Exposure by systemd-analyze, from 0 (fully isolated) to 100. A unit without any of these settings has 96."""


def setting(name: str) -> str:
    (value,) = re.findall(rf"^ *{name} ([^;]+);", TEXT, flags=re.MULTILINE)
    return str(value)


class TestLimits:
    def test_a_chunk_passes_and_nothing_larger(self) -> None:
        assert setting("client_max_body_size") == f"{Settings().chunk_bytes // 2**20}m"

    def test_a_long_poll_is_not_cut(self) -> None:
        assert int(setting("proxy_read_timeout").removesuffix("s")) > LONGEST_POLL_SECONDS
        assert AgentSettings.model_fields["lease_wait_seconds"].metadata[-1].le <= LONGEST_POLL_SECONDS

    @pytest.mark.parametrize("name", ["client_header_timeout", "client_body_timeout"])
    def test_half_a_request_is_waited_for_as_long_as_by_the_web_process(self, name: str) -> None:
        assert setting(name) == f"{Settings().request_seconds:g}s"

    def test_one_agent_with_all_slots_has_connections_enough(self) -> None:
        zone, connections = setting("limit_conn").split()
        assert f"zone={zone}:" in setting("limit_conn_zone")
        (slots,) = (bound.le for bound in AgentSettings.model_fields["slots"].metadata if hasattr(bound, "le"))
        assert int(connections) > 2 * slots

    def test_the_bytes_of_an_artifact_lie_on_no_disk_of_the_balancer(self) -> None:
        assert (setting("proxy_request_buffering"), setting("proxy_max_temp_file_size")) == ("off", "0")


def certificate(folder: Path, name: str = "fullchain.pem", key: str = "privkey.pem") -> None:
    """Create a self-signed certificate as described in docs/operators.md."""
    subprocess.run(
        [
            str(OPENSSL), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-days", "1", "-subj", "/CN=fedloom.internal", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout", str(folder / key), "-out", str(folder / name),
        ],
        check=True, capture_output=True,
    )  # fmt: skip


def configuration(folder: Path, port: int, web: str) -> Path:
    """Write nginx.conf with paths of this test, one worker, and `web` in place of the containers' name."""
    text = TEXT.replace(" /tmp/", f" {folder}/").replace("/etc/nginx/certs", str(folder))
    text = text.replace("/etc/nginx/clients", str(folder / "clients"))
    text = text.replace("http://web:8000", web).replace("listen 8443", f"listen 127.0.0.1:{port}")
    file = folder / "nginx.conf"
    file.write_text(text.replace("worker_processes auto", "worker_processes 1"), encoding="utf-8")
    return file


@pytest.mark.skipif(NGINX is None or OPENSSL is None, reason="needs nginx and openssl")
class TestNginx:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        certificate(tmp_path)
        return tmp_path

    @pytest.fixture
    def certificates(self, folder: Path) -> Path:
        """The folder with required client certificates, of which only that of `client.pem` is trusted."""
        certificate(folder, "client.pem", "client-key.pem")
        certificate(folder, "stranger.pem", "stranger-key.pem")
        (folder / "clients-ca.pem").write_bytes((folder / "client.pem").read_bytes())
        (folder / "clients").mkdir()
        snippet = (DEPLOY / "nginx/client-certificates.conf").read_text("utf-8")
        (folder / "clients/asked.conf").write_text(snippet.replace("/etc/nginx/certs", str(folder)), encoding="utf-8")
        return folder

    @pytest.fixture
    def via_balancer(self, service: Service, folder: Path) -> Iterator[httpx.Client]:
        """A client that reaches a real web process through the load balancer."""
        port = free_port()
        file = configuration(folder, port, service.url)
        process = subprocess.Popen([str(NGINX), "-p", str(folder), "-c", str(file), "-g", "daemon off;"])
        context = ssl.create_default_context(cafile=str(folder / "fullchain.pem"))
        try:
            with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context, trust_env=False) as client:
                _wait_for(client)
                yield client
        finally:
            process.terminate()
            process.wait(START_SECONDS)

    def test_nginx_finds_nothing_wrong(self, folder: Path) -> None:
        file = configuration(folder, 8443, "http://web:8000")
        process = subprocess.run(
            [str(NGINX), "-t", "-p", str(folder), "-c", str(file)], capture_output=True, text=True, check=False
        )
        assert (process.returncode, "[warn]" in process.stderr) == (0, False), process.stderr

    def test_the_api_is_there_and_the_metrics_are_not(self, via_balancer: httpx.Client, service: Service) -> None:
        assert via_balancer.get("/v1/organizations").status_code == 401
        assert via_balancer.get("/v1/organizations", auth=Bearer(service.admin_key)).status_code == 200
        assert via_balancer.get("/metrics").status_code == 404
        assert via_balancer.get("/healthz").headers["Strict-Transport-Security"].startswith("max-age=")

    def test_a_whole_chunk_passes_and_one_byte_more_does_not(
        self, via_balancer: httpx.Client, service: Service
    ) -> None:
        organization = service.new_organization("Clinic")
        via_balancer.auth = Bearer(created(_new_key(service, organization.id))["key"])
        content = bytes(Settings().chunk_bytes)
        announcement = {"size_bytes": len(content), "digest": "sha256:" + sha256(content).hexdigest()}
        upload = created(via_balancer.post("/v1/artifacts/uploads", json=announcement))
        path = f"/v1/artifacts/uploads/{upload['upload_id']}"
        assert via_balancer.put(f"{path}/chunks/0", content=content + b"x").status_code == 413
        assert via_balancer.put(f"{path}/chunks/0", content=content).status_code == 204
        assert via_balancer.post(f"{path}/complete").json()["state"] == "complete"

    @pytest.mark.parametrize(("name", "status"), [("client", 200), ("stranger", 400), (None, 400)])
    def test_an_agent_shows_its_certificate_to_a_balancer_that_asks_for_one(
        self, certificates: Path, via_balancer: httpx.Client, name: str | None, status: int
    ) -> None:
        options = {} if name is None else {"client_certificate": f"{name}.pem", "client_key": f"{name}-key.pem"}
        files = {option: certificates / file for option, file in {"ca_file": "fullchain.pem", **options}.items()}
        settings = AgentSettings.model_validate(files)
        with open_http(settings, str(via_balancer.base_url)) as client:
            assert client.get("/healthz").status_code == status

    def test_enrollment_cannot_be_guessed_at_speed(self, via_balancer: httpx.Client) -> None:
        answers = [via_balancer.post("/v1/workers/enroll", json={}).status_code for _ in range(40)]
        assert set(answers) == {422, 429}


def _new_key(service: Service, organization_id: str) -> httpx.Response:
    return service.admin.post(f"/v1/organizations/{organization_id}/api-keys", json={"name": "n", "role": "owner"})


def _wait_for(client: httpx.Client) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            client.get("/healthz")
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


@pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("with_drop_ins", [False, True], ids=["as it is", "with drop-ins"])
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_finds_nothing_wrong_with_a_unit_and_little_exposed(
    path: Path, tmp_path: Path, with_drop_ins: bool
) -> None:
    copy = tmp_path / path.name
    copy.write_text(path.read_text("utf-8").replace("/opt/fedloom/bin", str(Path(sys.executable).parent)))
    if with_drop_ins:
        (tmp_path / f"{path.name}.d").mkdir()
        for drop_in in DROP_INS:
            if drop_in.name.startswith(path.stem):
                shutil.copy(drop_in, tmp_path / f"{path.name}.d")
    for command in (["verify"], ["security", "--offline=true", f"--threshold={MOST_EXPOSED}"]):
        process = subprocess.run([str(ANALYZE), *command, str(copy)], capture_output=True, text=True, check=False)
        assert (process.returncode, process.stderr) == (0, ""), process.stdout
