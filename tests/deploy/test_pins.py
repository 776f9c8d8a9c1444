"""Pins of the deployment: images by digest from a registry, and Python packages by hash."""

import ast
import json
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy import pin_images, pin_packages
from tests.deploy.deployed import DEPLOY

TOKEN = "for-pulling"
OURS = {"coordinator", "worker_agent", "federated"}
BY_EXTRA = {"bitsandbytes", "triton"}
"""Imported only with a GPU. If one is missing, the error names it."""


@dataclass
class Registry:
    """Stub of a registry with manifests by name and tag. A request without its token gets a challenge."""

    manifests: dict[tuple[str, str], bytes]
    false_digests: dict[tuple[str, str], str] = field(default_factory=dict)
    """Digests in its headers that differ from those of the manifests."""
    challenge: str = 'Bearer realm="{url}/token",service="stub",scope="repository:{name}:pull"'
    scopes: list[str] = field(default_factory=list)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    registry: Registry

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/token":
            self.registry.scopes += parse_qs(url.query)["scope"]
            self._respond(200, json.dumps({"token": TOKEN}).encode())
            return
        match = re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", url.path)
        assert match is not None
        assert "application/vnd.oci.image.index.v1+json" in self.headers["Accept"]
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            header = self.registry.challenge.format(url=self.registry.url, name=match[1])
            self._respond(401, b"{}", {"WWW-Authenticate": header})
            return
        image = (match[1], match[2])
        content = self.registry.manifests.get(image)
        if content is None:
            self._respond(404, b"{}")
            return
        digest = self.registry.false_digests.get(image, f"sha256:{sha256(content).hexdigest()}")
        self._respond(200, content, {"Docker-Content-Digest": digest})

    def _respond(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry on this machine that has every image of `deploy/`."""
    names = pin_images.images().values()
    stub = Registry({(name if "/" in name else f"library/{name}", tag): tag.encode() for name, tag in names})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"registry": stub}))
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield stub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copies of the files that name images."""
    for path in (DEPLOY / "compose.yaml", DEPLOY / "images.env", *DEPLOY.glob("*.Dockerfile")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


class TestImages:
    def test_every_image_of_others_has_a_variable_in_the_file(self) -> None:
        variables = re.findall(r"^(\w+)=", (DEPLOY / "images.env").read_text("utf-8"), flags=re.MULTILINE)
        assert variables == sorted(pin_images.images())
        text = "".join(path.read_text("utf-8") for path in (DEPLOY / "compose.yaml", *DEPLOY.glob("*.Dockerfile")))
        images = re.findall(r"(?:image: |^FROM )(\S+)", text, flags=re.MULTILINE)
        assert {name for name in images if "_DIGEST" not in name} == {
            f"fedloom-{ours}:0.1.0" for ours in ("coordinator", "worker", "store")
        }

    def test_the_file_gets_the_digest_of_every_manifest(self, registry: Registry, folder: Path) -> None:
        head = (folder / "images.env").read_text("utf-8").split("DEBIAN")[0]
        pin_images.main(registry.url, folder)
        text = (folder / "images.env").read_text("utf-8")
        assert text.startswith(head)
        digests = dict(line.split("=", 1) for line in text.removeprefix(head).splitlines())
        assert digests == {
            variable: f"@sha256:{sha256(tag.encode()).hexdigest()}"
            for variable, (_, tag) in pin_images.images().items()
        }
        assert "repository:library/python:pull" in registry.scopes

    @pytest.mark.parametrize(
        ("faults", "message"),
        [
            ({"manifests": {}}, "the registry responds with 404"),
            (
                {"false_digests": {("library/python", "3.11.13-slim-bookworm"): "sha256:0"}},
                "the registry states sha256:0, but its",
            ),
            ({"challenge": 'Basic realm="x"'}, "another authentication: 'Basic"),
            ({"challenge": 'Bearer realm="file:///etc/passwd"'}, "another authentication"),
        ],
    )
    def test_what_cannot_be_pinned_is_said_and_the_file_stays(
        self, registry: Registry, folder: Path, faults: dict[str, object], message: str
    ) -> None:
        before = (folder / "images.env").read_bytes()
        for name, value in faults.items():
            setattr(registry, name, value)
        with pytest.raises(pin_images.Unpinnable, match=re.escape(message)):
            pin_images.main(registry.url, folder)
        assert (folder / "images.env").read_bytes() == before

    def test_a_variable_stands_for_one_image(self, folder: Path) -> None:
        file = folder / "worker.Dockerfile"
        file.write_text(file.read_text("utf-8").replace("python:3.11.13", "python:3.12.1"), "utf-8")
        with pytest.raises(pin_images.Unpinnable, match=r"PYTHON_DIGEST is used for python:3\.11\.13"):
            pin_images.images(folder)


def pinned_packages(name: str) -> dict[str, tuple[str, list[str]]]:
    """Canonical name -> version and SHA-256 of each package in `requirements-{name}.txt`."""
    text = (DEPLOY / f"requirements-{name}.txt").read_text("utf-8")
    rows = re.findall(r"^([\w.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, flags=re.MULTILINE)
    assert len(rows) == len(re.findall(r"^[^#\s]", text, flags=re.MULTILINE))
    return {canonicalize_name(row[0]): (row[1], re.findall("[0-9a-f]{64}", row[2])) for row in rows}


def requirements_of(name: str, extras: Iterable[str] = ()) -> list[Requirement]:
    """Requirements of an installed package on this machine."""
    requirements = [Requirement(line) for line in metadata.requires(name) or ()]
    return [
        one for one in requirements if not one.marker or any(one.marker.evaluate({"extra": e}) for e in ("", *extras))
    ]


def names(requirements: Iterable[Requirement]) -> set[str]:
    return {canonicalize_name(one.name) for one in requirements}


@pytest.mark.parametrize("name", pin_packages.EXTRAS)
class TestPackages:
    def test_they_are_those_of_the_constraints_and_each_has_a_hash(self, name: str) -> None:
        packages = pinned_packages(name)
        assert [pin_packages.pins()[package] for package in packages] == pin_packages.closure(
            pin_packages.direct(name)
        )
        for package, (version, digests) in packages.items():
            assert pin_packages.pins()[package].endswith(f"=={version}")
            assert 1 <= len(set(digests)) == len(digests) <= len(pin_packages.MACHINES)

    def test_what_is_required_is_there_but_for_torch(self, name: str) -> None:
        packages = set(pinned_packages(name))
        requirements = [
            *pin_packages.direct(name),
            *(one for package in packages for one in requirements_of(package)),
        ]
        assert names(requirements) - packages <= {pin_packages.WITHOUT_HASHES}

    def test_nothing_is_there_that_nobody_requires(self, name: str) -> None:
        packages = set(pinned_packages(name))
        requirements = [*pin_packages.direct(name), *requirements_of(pin_packages.WITHOUT_HASHES)]
        requirements += [one for package in packages for one in requirements_of(package)]
        extras = {canonicalize_name(one.name): one.extras for one in requirements if one.extras}
        by_extras = [one for package, own in extras.items() for one in requirements_of(package, own)]
        assert packages - names([*requirements, *by_extras]) == set()


@pytest.mark.parametrize(
    ("name", "package", "optional"),
    # Merge uses its names if it is installed.
    [("coordinator", "coordinator", {"transformers"}), ("worker", "worker_agent", set())],
)
def test_whatever_is_imported_is_installed(name: str, package: str, optional: set[str]) -> None:
    distributions = metadata.packages_distributions()
    sources = [path for folder in (package, "federated") for path in (DEPLOY.parent / folder).rglob("*.py")]
    nodes = [node for path in sources for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    roots = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - OURS - BY_EXTRA - optional
    assert {"httpx", "pydantic", "torch"} <= roots
    packages = {*pinned_packages(name), pin_packages.WITHOUT_HASHES}
    assert {root for root in roots if packages.isdisjoint(map(canonicalize_name, distributions[root]))} == set()


def test_a_package_without_a_pin_is_named() -> None:
    with pytest.raises(pin_packages.MissingPin, match="nowhere-to-be-found"):
        pin_packages.closure([Requirement("nowhere-to-be-found>=1")])
