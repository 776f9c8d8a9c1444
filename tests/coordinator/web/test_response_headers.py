"""Headers of every response: of each operation, rejection, stream and unexpected error."""

import re
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from coordinator.app import create_app
from coordinator.web.response_headers import ALWAYS
from tests.coordinator.contract.asking import OPERATIONS
from tests.support.service import Service, serving, upload

CONTENT = b"kept"


def lacking(answer: httpx.Response) -> dict[str, str]:
    """The headers that every answer has and this one has not."""
    return {name: value for name, value in ALWAYS.items() if answer.headers.get_list(name) != [value]}


def test_every_operation_answers_with_them(service: Service) -> None:
    for operation in OPERATIONS:
        path = re.sub(r"\{\w+\}", "0", operation.path)
        answer = service.anonymous.request(operation.method, path)
        assert lacking(answer) == {}, operation.id


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("PUT", "/v1/organizations", 405), ("POST", "/v1/workers/enroll", 413)],
)
def test_so_does_what_no_operation_answers(service: Service, method: str, path: str, status: int) -> None:
    content = bytes(2**20 + 1) if status == 413 else b""
    answer = service.admin.request(method, path, content=content)
    assert (answer.status_code, lacking(answer)) == (status, {})


def test_so_does_an_error_that_nobody_foresaw(data_folder: Path) -> None:
    app = create_app()

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError

    with serving(app) as service:
        answer = service.anonymous.get("/broken")
    assert (answer.status_code, lacking(answer)) == (500, {})
    assert answer.headers["cache-control"] == "no-store"


def test_so_does_an_artifact_which_may_be_kept_as_before(service: Service) -> None:
    clinic = service.new_organization("Clinic")
    digest = "sha256:" + sha256(CONTENT).hexdigest()
    upload(clinic.owner, CONTENT, digest)
    answer = service.admin.get(f"/v1/artifacts/{digest}")
    assert (answer.content, lacking(answer)) == (CONTENT, {})
    assert answer.headers.get_list("cache-control") == ["private, max-age=31536000, immutable"]


class TestCaches:
    def test_an_answer_with_a_tag_is_asked_for_again_by_it(self, service: Service) -> None:
        answer = service.admin.get("/v1/organizations")
        assert "cache-control" not in answer.headers
        again = service.admin.get("/v1/organizations", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, lacking(again)) == (304, {})

    def test_one_without_is_stored_nowhere(self, service: Service) -> None:
        refused = service.anonymous.get("/v1/organizations")
        assert refused.headers["cache-control"] == "no-store"
