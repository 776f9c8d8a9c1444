"""Addresses of a coordinator: over IPv6, and below a path of a proxy."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from pydantic import ValidationError

from coordinator.addresses import free_port, url_of
from coordinator.settings import Settings
from tests.support.known_agent import check_agent
from tests.support.recording_proxy import RecordingProxy
from tests.support.service import Bearer, Service, created, forget_settings
from worker_agent.origins import Origins
from worker_agent.settings import AgentSettings

PREFIX = "/fedloom"


def test_a_url_has_an_ipv6_address_in_brackets() -> None:
    assert url_of("::1", 8000) == "http://[::1]:8000"
    assert url_of("127.0.0.1", 8000) == "http://127.0.0.1:8000"
    assert Settings(host="[::1]").host == Settings(host="::1").host == "::1"


def test_a_store_at_an_ipv6_address_may_be_listed() -> None:
    (host,) = AgentSettings(hosts=("http://[::1]:9000",)).hosts
    origins = Origins(httpx.URL("http://[::1]:8000"), [host])
    assert str(origins.target("http://[::1]:9000/bucket/key")) == "http://[::1]:9000/bucket/key"
    assert origins.target("http://[::2]:9000/bucket/key") is None


def test_an_address_that_this_machine_lacks_is_named() -> None:
    with pytest.raises(SystemExit, match=r"cannot listen at host '2001:db8::1'"):
        free_port("2001:db8::1")


@pytest.fixture
def below(service: Service, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a service behind a proxy that serves it below a path, and takes that away (or not)."""
    proxy = RecordingProxy(PREFIX, strips=request.param)
    with proxy.before(service.url) as url:
        with monkeypatch.context() as changed:
            changed.setenv("FEDLOOM_PUBLIC_URL", f"{url}/")
            forget_settings()
            yield url
        forget_settings()


@pytest.mark.parametrize("below", [True, False], indirect=True, ids=["stripped", "kept"])
class TestBelowAPath:
    def test_what_is_made_and_the_next_page_are_found(self, below: str, service: Service) -> None:
        with httpx.Client(auth=Bearer(service.admin_key), trust_env=False) as admin:
            for name in ("Bank", "Clinic"):
                made = admin.post(f"{below}/v1/organizations", json={"name": name})
                there = urljoin(str(made.url), made.headers["Location"])
                assert admin.get(there).json() == created(made)
            first = admin.get(f"{below}/v1/organizations?limit=1")
            following = urljoin(str(first.url), first.links["next"]["url"])
            (second,) = admin.get(following).json()["items"]
        assert urlsplit(following).path == f"{PREFIX}/v1/organizations"
        assert {first.json()["items"][0]["name"], second["name"]} == {"Bank", "Clinic"}

    def test_the_document_names_the_path_and_the_pages_find_the_document(self, below: str) -> None:
        with httpx.Client(trust_env=False) as anybody:
            document = anybody.get(f"{below}/openapi.json").json()
            assert document["servers"] == [{"url": PREFIX}]
            assert "/v1/organizations" in document["paths"]
            page = anybody.get(f"{below}/docs")
            (script,) = re.findall(r'src="([^"]*viewer\.js)"', page.text)
            assert 'url: "openapi.json"' in anybody.get(urljoin(f"{below}/docs", script)).text

    def test_an_agent_is_enrolled_and_known(self, below: str, service: Service, tmp_path: Path) -> None:
        token = service.new_enrollment_token(service.new_organization("Bank").id)
        facts = {"url": below, "folder": tmp_path / "worker", "device": "cpu"}
        check_agent(AgentSettings.model_validate(facts), token)

    def test_a_path_with_a_slash_too_many_is_no_redirect(self, below: str) -> None:
        answer = httpx.get(f"{below}/v1/organizations/", trust_env=False)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "url", ["fedloom.example.org", "ftp://example.org", "https://", "https://a@example.org", "https://example.org/?a=1",
            "https://example.org/v1", "https://example.org/v1/x"],
)  # fmt: skip
def test_a_public_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="public_url"):
        Settings(public_url=url)


def test_a_public_url_has_no_slash_at_its_end() -> None:
    told = Settings(public_url="https://example.org/fedloom/")
    assert (told.public_url, told.public_path) == ("https://example.org/fedloom", PREFIX)
    assert Settings(public_url="https://example.org/").public_path == Settings().public_path == ""
