"""Readers of the files in `deploy/`: programs with their arguments and variables, images and units."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from configparser import RawConfigParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.architecture.sizes import ROOT
from tests.deploy import chart

DEPLOY = ROOT / "deploy"
DOCKERFILES = {path.name: path for path in sorted(DEPLOY.glob("*.Dockerfile"))}
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
DROP_INS = sorted((DEPLOY / "systemd/drop-ins").glob("*.conf"))
_OURS = {"fedloom-coordinator": "coordinator.Dockerfile", "fedloom-worker": "worker.Dockerfile"}
_INTERPOLATION = re.compile(r"\$\{(\w+)(?::[?-][^}]*)?\}")


@dataclass(frozen=True, slots=True)
class ProgramStart:
    """The start of one of our programs in a deployment file."""

    where: str
    program: str
    arguments: tuple[str, ...]
    variables: Mapping[str, str]


def compose() -> dict[str, Any]:
    """compose.yaml."""
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8")))


def environment_variables() -> set[str]:
    """The variables that compose.yaml takes from its environment."""
    return set(_INTERPOLATION.findall((DEPLOY / "compose.yaml").read_text("utf-8")))


def without_digest(image: str) -> str:
    """Name and tag of the image, without the variable of its digest."""
    return re.sub(r"\$\{\w+_DIGEST(:-)?\}$", "", image)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile in order as (name, rest), with continued lines joined."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text("utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def last(dockerfile: Path, name: str) -> str:
    """The last instruction of that name."""
    return [rest for instruction, rest in instructions(dockerfile) if instruction == name][-1]


def variables_of(dockerfile: Path) -> dict[str, str]:
    """ENV of the last stage."""
    steps = instructions(dockerfile)
    stage = max(index for index, (name, _) in enumerate(steps) if name == "FROM")
    pairs = [pair for name, rest in steps[stage:] if name == "ENV" for pair in shlex.split(rest)]
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def example(file: str) -> dict[str, str]:
    """The variables of an environment example, including commented ones."""
    pairs = re.findall(r"^#?([A-Z][A-Z0-9_]*)=(.*)$", (DEPLOY / file).read_text("utf-8"), flags=re.MULTILINE)
    assert pairs
    return dict(pairs)


def unit(path: Path) -> RawConfigParser:
    """A systemd unit. In our units no key occurs twice in a section."""
    parser = RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(path.read_text("utf-8"))
    return parser


def program_starts() -> list[ProgramStart]:
    """All starts of our programs in `deploy/`."""
    return [*_by_images(), *_by_compose(), *_by_units(), *(_by_chart() if chart.HELM_IS_HERE else ())]


def _by_images() -> Iterator[ProgramStart]:
    for name in _OURS.values():
        file = DOCKERFILES[name]
        (program,), arguments = json.loads(last(file, "ENTRYPOINT")), json.loads(last(file, "CMD"))
        yield ProgramStart(name, program, tuple(arguments), variables_of(file))


def _by_compose() -> Iterator[ProgramStart]:
    for name, service in compose()["services"].items():
        dockerfile = _OURS.get(service["image"].split(":")[0])
        if dockerfile is not None:
            yield _in_image(f"compose.yaml: {name}", dockerfile, service["command"], service["environment"])


def _by_chart() -> Iterator[ProgramStart]:
    for name, pod in chart.with_all().pods.items():
        for container in pod["containers"]:
            variables = {variable["name"]: variable["value"] for variable in container["env"]}
            yield _in_image(f"helm: {name}", "coordinator.Dockerfile", container["args"], variables)


def _in_image(where: str, dockerfile: str, arguments: Sequence[str], variables: Mapping[str, str]) -> ProgramStart:
    (program,) = json.loads(last(DOCKERFILES[dockerfile], "ENTRYPOINT"))
    plain = {name: _INTERPOLATION.sub("x", value) for name, value in variables.items()}
    return ProgramStart(where, program, tuple(arguments), plain)


def _by_units() -> Iterator[ProgramStart]:
    for path in UNITS:
        service = unit(path)["Service"]
        program, *arguments = shlex.split(service["ExecStart"])
        pairs = (pair.partition("=") for pair in shlex.split(service["Environment"]))
        variables = {name: value for name, _, value in pairs}
        yield ProgramStart(path.name, Path(program).name, tuple(arguments), variables)
