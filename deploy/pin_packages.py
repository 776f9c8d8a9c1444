"""Hash pins of the images' Python packages: `python -m deploy.pin_packages` writes `requirements-….txt`.

The packages of an image follow from pyproject.toml and the metadata of the packages installed here. Their versions
are those of constraints.txt. The hashes are those of the wheels that pip would choose in the images: Linux on x86_64
and aarch64, with the images' Python. torch is left out, as each platform and each index has other builds of a
version.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "deploy"
EXTRAS = {"build": None, "coordinator": ("coordinator", "tracing"), "worker": ("worker",)}
"""File -> extras of this project that it covers. None stands for the build requirements of the wheel."""
WITHOUT_HASHES = "torch"
PYTHON = "3.11"
MACHINES = ("x86_64", "aarch64")
_OLDEST_GLIBC, _IMAGES_GLIBC = 5, 36
_HEAD = """\
# Written by `make pin-packages` from constraints.txt: wheels for Python {python} on Linux ({machines}).
# Without {excluded}, which the Dockerfiles install by version: each platform and each index has other builds of it.
"""


class MissingPin(Exception):
    """A required package has no version in constraints.txt."""


def pins() -> dict[str, str]:
    """Canonical name -> line of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").split()
    return {canonicalize_name(line.partition("==")[0]): line for line in lines}


def direct(name: str) -> list[Requirement]:
    """The requirements in pyproject.toml that `requirements-{name}.txt` covers."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = EXTRAS[name]
    if extras is None:
        return [Requirement(line) for line in pyproject["build-system"]["requires"]]
    project = pyproject["project"]
    optional = (line for extra in extras for line in project["optional-dependencies"][extra])
    return [Requirement(line) for line in (*project["dependencies"], *optional)]


def required_by(requirement: Requirement) -> Iterator[Requirement]:
    """Yield the dependencies of an installed package on any of the machines, with the requested extras."""
    for line in metadata.requires(requirement.name) or ():
        dependency = Requirement(line)
        if any(_holds(dependency, machine, extra) for machine in MACHINES for extra in ("", *requirement.extras)):
            yield dependency


def _holds(requirement: Requirement, machine: str, extra: str) -> bool:
    environment = {
        "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": machine,
        "python_version": PYTHON, "python_full_version": f"{PYTHON}.13", "implementation_name": "cpython",
        "platform_python_implementation": "CPython", "extra": extra,
    }  # fmt: skip
    return requirement.marker is None or requirement.marker.evaluate(environment)


def closure(requirements: Iterable[Requirement]) -> list[str]:
    """Lines of constraints.txt for these requirements and all their dependencies, by name. Raises MissingPin."""
    pins_by_name, packages, expansions = pins(), set(), set()
    waiting = [("", requirement) for requirement in requirements]
    while waiting:
        parent, requirement = waiting.pop()
        package = canonicalize_name(requirement.name)
        if package not in pins_by_name and parent == WITHOUT_HASHES:  # torch's GPU packages, which torch pins itself
            continue
        if package not in pins_by_name:
            raise MissingPin(f"{requirement}, required by {parent or 'pyproject.toml'}, is not in constraints.txt")
        packages.add(package)
        if (package, *sorted(requirement.extras)) not in expansions:
            expansions.add((package, *sorted(requirement.extras)))
            waiting += [(package, further) for further in required_by(requirement)]
    return [pins_by_name[package] for package in sorted(packages - {WITHOUT_HASHES})]


def hashes(lines: list[str]) -> Mapping[str, set[str]]:
    """Canonical name -> SHA-256 of the wheels that pip would choose, as hexadecimal digits."""
    digests: dict[str, set[str]] = defaultdict(set)
    for machine in MACHINES:
        for one in _report(lines, machine)["install"]:
            digest = one["download_info"]["archive_info"]["hashes"]["sha256"]
            digests[canonicalize_name(one["metadata"]["name"])].add(digest)
    return digests


def _report(lines: list[str], machine: str) -> dict[str, Any]:
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(_IMAGES_GLIBC, _OLDEST_GLIBC - 1, -1)]
    platforms = [word for tag in (*tags, f"manylinux2014_{machine}") for word in ("--platform", tag)]
    with tempfile.TemporaryDirectory() as nowhere:
        process = subprocess.run(
            [
                sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet",
                "--report", "-", "--target", nowhere, "--only-binary", ":all:", "--python-version", PYTHON,
                "--implementation", "cp", *platforms, *lines,
            ],
            check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    report: dict[str, Any] = json.loads(process.stdout)
    return report


def text(lines: list[str], digests: Mapping[str, set[str]]) -> str:
    """A requirements file for `pip install --require-hashes`."""
    head = _HEAD.format(python=PYTHON, machines=", ".join(MACHINES), excluded=pins()[WITHOUT_HASHES])
    rows = []
    for line in lines:
        own = sorted(digests[canonicalize_name(line.partition("==")[0])])
        rows.append(" \\\n    ".join([line, *(f"--hash=sha256:{digest}" for digest in own)]))
    return head + "\n".join(rows) + "\n"


def main() -> None:
    """Write the files."""
    for name in EXTRAS:
        lines = closure(direct(name))
        (FOLDER / f"requirements-{name}.txt").write_text(text(lines, hashes(lines)), "utf-8")
        print(f"requirements-{name}.txt: {len(lines)} packages")


if __name__ == "__main__":
    main()
