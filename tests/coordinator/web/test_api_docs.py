"""API documentation at /docs: works without other hosts, and its viewer has the listed digest."""

import json
import re
from hashlib import sha256
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import pytest

from coordinator.web.api_docs import FOLDER, POLICY
from tests.support.service import Service

PAGE = "/docs"
LOADING = {"script": "src", "link": "href", "img": "src", "iframe": "src"}


class Loaded(HTMLParser):
    """Addresses of what a page loads; what is written into the page itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)
        if tag in LOADING:
            self.addresses.append(given[LOADING[tag]] or "")


@pytest.fixture
def loaded(service: Service) -> dict[str, str]:
    """Address of each file that the page loads -> its text."""
    page = service.anonymous.get(PAGE)
    assert page.headers["content-security-policy"] == POLICY
    found = Loaded(page.text)
    assert found.inline == []
    texts = {}
    for address in found.addresses:
        if not address.startswith("data:"):
            answer = service.anonymous.get(urljoin(PAGE, address))
            assert answer.status_code == 200, address
            texts[address] = answer.text
    return texts


def test_page_and_files_name_no_foreign_host(loaded: dict[str, str]) -> None:
    assert len(loaded) == 3
    assert [address for address in loaded if urlsplit(address).netloc] == []
    style = loaded["docs/swagger-ui.css"]
    assert [found for found in re.findall(r"url\(\s*[\"']?(.{5})", style) if found != "data:"] == []
    assert "@import" not in style
    assert "//" not in loaded["docs/viewer.js"].split("\n", 1)[1]


def test_the_browser_is_told_to_load_nothing_else() -> None:
    policy = dict(part.strip().split(" ", 1) for part in POLICY.split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in POLICY
    sources = {source for listed in policy.values() for source in listed.split()}
    assert sources == {"'self'", "'none'", "data:"}


def test_the_viewer_is_pointed_at_the_document(service: Service, loaded: dict[str, str]) -> None:
    (address,) = re.findall(r'url: "([^"]+)"', loaded["docs/viewer.js"])
    assert service.anonymous.get(urljoin(PAGE, address)).json()["openapi"]
    assert "validatorUrl: null" in loaded["docs/viewer.js"]


def test_files_of_others_are_the_listed_ones() -> None:
    vendor = FOLDER / "vendor"
    packages = json.loads((vendor / "vendored.json").read_text("utf-8"))["packages"]
    listed = {name: digest for package in packages for name, digest in package["files"].items()}
    found = {path.name: sha256(path.read_bytes()).hexdigest() for path in vendor.iterdir()}
    del found["vendored.json"]
    assert found == listed
    for package in packages:
        assert re.fullmatch(r"\d+\.\d+\.\d+", package["version"])
        assert package["licence"] == "Apache-2.0"
        assert "LICENSE" in package["files"]
