"""The web process as a whole: health, errors, limits, OpenAPI."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from coordinator.app import create_app
from coordinator.db import migration
from coordinator.db.sessions import utcnow, writing
from coordinator.operations import heartbeats
from coordinator.settings import get_settings
from federated import __version__
from tests.support.logged import Lines, logged
from tests.support.places import lose_broker, lose_store
from tests.support.service import Service, forget_settings, problem, serving
from tests.support.web_thread import running

OPEN = {"/healthz", "/readyz", "/version", "/metrics", "/openapi.json", "/docs"}
ENROLL = "/v1/workers/enroll"


@contextmanager
def serving_without_keys() -> Iterator[httpx.Client]:
    """The app over a database in which nothing can be written."""
    with running(create_app()) as url, httpx.Client(base_url=url, trust_env=False) as anonymous:
        yield anonymous


def test_importing_it_loads_no_torch() -> None:
    program = "import sys, coordinator.app; coordinator.app.create_app().openapi(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    loaded = done.stdout
    assert "'fastapi'" in loaded
    for name in ("torch", "transformers", "peft", "numpy", "safetensors"):
        assert f"'{name}'" not in loaded


class TestHealth:
    def test_it_lives_and_says_its_version(self, service: Service) -> None:
        assert service.anonymous.get("/healthz").json() == {"status": "ok"}
        assert service.anonymous.get("/version").json() == {"version": __version__, "protocol_version": 1}

    def test_it_counts_its_requests(self, service: Service) -> None:
        service.admin.get("/v1/organizations/org_unknown")
        line = 'fedloom_http_requests_total{method="GET",route="/v1/organizations/{organization_id}",status="404"}'
        assert line in service.anonymous.get("/metrics").text


class TestNames:
    def test_a_request_has_a_name_of_its_own(self, service: Service) -> None:
        names = {service.anonymous.get("/version").headers["x-request-id"] for _ in range(3)}
        assert len(names) == 3
        assert all(name.startswith("req_") for name in names)

    def test_the_callers_name_is_kept_if_it_is_simple(self, service: Service) -> None:
        for given, kept in {"trace-1.a_B": True, "": False, "a b": False, "a" * 65: False}.items():
            told = service.anonymous.get("/nowhere", headers={"X-Request-ID": given}).headers["x-request-id"]
            assert (told == given) is kept

    def test_the_log_names_the_request_and_what_it_is_about(self, service: Service) -> None:
        with logged() as lines:
            answer = service.admin.get("/v1/federations/fed_0", headers={"X-Request-ID": "mine"})
            problem(answer, 404, "federation_unknown")
            (line,) = lines_of("mine", lines)
        assert (line["event"], line["status"], line["federation_id"]) == ("request", 404, "fed_0")


def lines_of(request_id: str, lines: Lines) -> list[dict[str, Any]]:
    """What was logged of the request, which comes after its answer."""
    deadline = time.monotonic() + 10
    while True:
        told = [line for line in lines() if line.get("request_id") == request_id]
        if told or time.monotonic() > deadline:
            return told
        time.sleep(0.01)


class TestReadiness:
    def ready(self, service: Service) -> httpx.Response:
        return service.anonymous.get("/readyz")

    def heard(self, *roles: heartbeats.Role, ago_seconds: float = 0) -> None:
        with writing() as session:
            for role in roles:
                heartbeats.renew(session, role, role, utcnow() - timedelta(seconds=ago_seconds))

    def test_all_there_is_ready(self, service: Service) -> None:
        self.heard("background", "beat")
        answer = self.ready(service)
        assert answer.status_code == 200
        assert answer.json()["status"] == "ready"
        assert set(answer.json()["checks"].values()) == {"ok"}

    def test_it_names_the_processes_that_were_never_heard(self, service: Service) -> None:
        assert problem(self.ready(service), 503, "not_ready")["missing"] == ["background", "beat"]

    def test_it_names_a_process_that_fell_silent(self, service: Service) -> None:
        self.heard("beat")
        self.heard("background", ago_seconds=get_settings().process_stale_seconds + 1)
        found = problem(self.ready(service), 503, "not_ready")
        assert (found["missing"], found["checks"]["beat"]) == (["background"], "ok")

    def test_it_names_a_missing_migration(self, service: Service) -> None:
        self.heard("background", "beat")
        migration.downgrade("-1")
        found = problem(self.ready(service), 503, "not_ready")
        assert found["missing"] == ["migrations"]
        assert "coordinator migrate" in found["detail"]

    def test_it_names_a_database_that_is_gone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FEDLOOM_DATA_FOLDER", str(tmp_path))
        monkeypatch.setenv("FEDLOOM_DATABASE_URL", f"sqlite:///{tmp_path / 'none' / 'file.sqlite'}")
        forget_settings()
        with serving_without_keys() as anonymous:
            found = problem(anonymous.get("/readyz"), 503, "not_ready")
            refused = anonymous.get("/v1/organizations", headers={"Authorization": "Bearer flk_key_1_2"})
        assert found["missing"] == ["database", "migrations", "background", "beat"]
        assert problem(refused, 503, "database_unavailable")
        assert refused.headers["retry-after"] == "1"

    def test_it_names_a_store_and_a_broker_that_are_gone(
        self, service: Service, data_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.heard("background", "beat")
        lose_broker(monkeypatch)
        lose_store(monkeypatch)
        assert problem(self.ready(service), 503, "not_ready")["missing"] == ["store", "broker"]


class TestErrors:
    def test_what_is_not_there_is_a_problem(self, service: Service) -> None:
        problem(service.admin.get("/v1/nothing"), 404, "not_found")

    def test_a_method_that_is_not_there_is_a_problem(self, service: Service) -> None:
        answer = service.admin.put("/v1/organizations")
        problem(answer, 405, "method_not_allowed")
        assert answer.headers["allow"]

    def test_what_nobody_expected_says_nothing_of_the_inside(self, data_folder: Path) -> None:
        app = create_app()

        @app.get("/broken")
        def broken() -> None:
            raise RuntimeError("the password is 1234")

        with serving(app) as service:
            answer = service.anonymous.get("/broken")
        problem(answer, 500, "internal_error")
        assert "1234" not in answer.text

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ({"capabilities": {"datasets": [{"name": "a"}, {"name": ""}]}}, "/capabilities/datasets/1/name"),
            ({"capabilities": {"versions": {"a/b~c": 1}}}, "/capabilities/versions/a~1b~0c"),
        ],
    )
    def test_a_bad_field_deep_inside_is_named_by_its_pointer(
        self, service: Service, body: dict[str, Any], pointer: str
    ) -> None:
        request = {"token": "t" * 8, "name": "gpu", "public_key": "k" * 43, **body}
        found = problem(service.anonymous.post(ENROLL, json=request), 422, "request_invalid")
        assert [error["pointer"] for error in found["errors"]] == [pointer]
        assert pointer in found["detail"]

    def test_the_answer_repeats_no_secret_that_was_sent(self, service: Service) -> None:
        request = {"token": "fle_secret_" + "x" * 300, "name": "gpu", "public_key": "k" * 43}
        answer = service.anonymous.post(ENROLL, json=request)
        assert problem(answer, 422, "request_invalid")["errors"][0]["pointer"] == "/token"
        assert "fle_secret" not in answer.text


class TestBodyLimit:
    @pytest.fixture(autouse=True)
    def limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FEDLOOM_MAX_BODY_BYTES", "1000")

    def test_a_larger_body_is_refused(self, service: Service) -> None:
        problem(service.anonymous.post(ENROLL, content=b"x" * 1001), 413, "body_too_large")
        problem(service.anonymous.post(ENROLL, content=b"x" * 1000), 422, "request_invalid")

    def test_a_larger_body_without_announced_length_is_refused(self, service: Service) -> None:
        headers = {"Content-Type": "application/json"}
        larger = service.anonymous.post(ENROLL, content=iter([b" " * 600, b" " * 401]), headers=headers)
        problem(larger, 413, "body_too_large")
        smaller = service.anonymous.post(ENROLL, content=iter([b" " * 600, b" " * 400]), headers=headers)
        problem(smaller, 422, "request_invalid")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app().openapi()


class TestOpenApi:
    def operations(self, document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
        methods = ("get", "post", "put", "patch", "delete")
        return [
            (path, method, operation)
            for path, item in document["paths"].items()
            for method, operation in item.items()
            if method in methods
        ]

    def test_it_is_of_version_3_1(self, document: dict[str, Any]) -> None:
        assert document["openapi"].startswith("3.1")

    def test_every_operation_has_an_id_of_its_own_and_a_summary(self, document: dict[str, Any]) -> None:
        operations = self.operations(document)
        names = [operation["operationId"] for _, _, operation in operations]
        assert len(set(names)) == len(names) > 30
        for path, _, operation in operations:
            assert operation["summary"], path
            assert operation["tags"], path

    def test_every_call_but_health_and_enrollment_says_its_security(self, document: dict[str, Any]) -> None:
        without = {path for path, _, operation in self.operations(document) if not operation.get("security")}
        assert without == (OPEN & set(document["paths"])) | {ENROLL}

    def test_every_call_says_its_errors_as_problems(self, document: dict[str, Any]) -> None:
        for path, method, operation in self.operations(document):
            if path in OPEN:
                continue
            assert {"401", "422"} <= set(operation["responses"]), (method, path)
            for status, response in operation["responses"].items():
                if status >= "400":
                    assert "application/problem+json" in response["content"], (method, path, status)

    def test_every_call_says_that_it_may_be_asked_to_wait(self, document: dict[str, Any]) -> None:
        for path, method, operation in self.operations(document):
            for status in ("429", "503") if path not in OPEN else ():
                assert operation["responses"][status]["headers"].keys() == {"Retry-After"}, (method, path)

    def test_every_post_takes_a_key_and_every_answer_in_json_has_a_tag(self, document: dict[str, Any]) -> None:
        for path, method, operation in self.operations(document):
            if path in OPEN or (
                method == "get" and "application/json" not in operation["responses"]["200"]["content"]
            ):
                continue
            headers = [given["name"].lower() for given in operation.get("parameters", []) if given["in"] == "header"]
            assert len(set(headers)) == len(headers)
            assert ("idempotency-key" in headers) == (method == "post"), (method, path)
            assert ("if-none-match" in headers) == ("304" in operation["responses"]) == (method == "get"), path
            assert "409" in operation["responses"] or method != "post", path

    def test_nothing_but_health_answers_without_credentials(self, service: Service, document: dict[str, Any]) -> None:
        for path, method, _ in self.operations(document):
            if path in OPEN or path == ENROLL:
                continue
            address = path.replace("{digest}", "sha256:" + "0" * 64).replace("{number}", "1").replace("{index}", "0")
            answer = service.anonymous.request(method.upper(), address, json={})
            assert answer.status_code == 401, (method, path, answer.text)

    def test_the_running_service_shows_it(self, service: Service) -> None:
        answer = service.anonymous.get("/openapi.json")
        assert answer.json()["info"]["version"] == __version__
        assert service.anonymous.get("/docs").status_code == 200
