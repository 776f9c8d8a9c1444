"""Deployment files against the code: commands, settings and versions, pinned images, and users other than root."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from obstore.exceptions import UnknownConfigurationKeyError
from obstore.store import S3Store
from typer.core import TyperGroup

import coordinator.__main__
import coordinator.settings
import worker_agent.__main__
import worker_agent.settings
from coordinator.settings import PLACEHOLDER, Settings
from federated import __version__
from tests.architecture.sizes import ROOT
from tests.deploy import chart, deployed
from tests.deploy.deployed import DEPLOY, DOCKERFILES, ProgramStart
from worker_agent.settings import AgentSettings

PROGRAMS = {"coordinator": coordinator.__main__.app, "worker-agent": worker_agent.__main__.app}
# Variables that neither program reads, and their readers.
OTHERS = {
    "PATH": "the shell",
    "PYTHONUNBUFFERED": "Python",
    "HF_HOME": "huggingface_hub",
    "HF_HUB_OFFLINE": "the same",
}
STORE_KEYS = {"aws_access_key_id": "id", "aws_secret_access_key": "secret"}
PROGRAM_STARTS = deployed.program_starts()


def with_secrets(file: str) -> dict[str, str]:
    """The variables of an example, with secrets in place of placeholders."""
    return {name: value.replace(PLACEHOLDER, "secret") for name, value in deployed.example(file).items()}


EXAMPLES = [
    ProgramStart("coordinator.env.example", "coordinator", ("up",), with_secrets("coordinator.env.example")),
    ProgramStart("worker.env.example", "worker-agent", ("run",), with_secrets("worker.env.example")),
]


def names(starts: Sequence[ProgramStart]) -> list[str]:
    return [one.where for one in starts]


def parse(program: str, arguments: Sequence[str]) -> None:
    """Raise LookupError unless the program has this command with these options."""
    command: Any = typer.main.get_command(PROGRAMS[program])
    rest = list(arguments)
    while isinstance(command, TyperGroup):
        if not rest or rest[0] not in command.commands:
            raise LookupError(f"{program} has no command {' '.join(arguments)!r}")
        command, rest = command.commands[rest[0]], rest[1:]
    options = {option for parameter in command.params for option in parameter.opts}
    unknown = [word for word in rest if word.startswith("-") and word.partition("=")[0] not in options]
    if unknown:
        raise LookupError(f"{program} {' '.join(arguments)} has no {unknown[0]}")


def unread_variables(one: ProgramStart) -> list[str]:
    """The variables that no program reads. Raises ValidationError for a value that the settings refuse."""
    prefix, settings = _settings_of(one.program)
    ours = {name: value for name, value in one.variables.items() if name.startswith("FEDLOOM_")}
    fields = {name: name.removeprefix(prefix).lower() for name in ours}
    unknown = [name for name, field in fields.items() if field not in settings.model_fields]
    unknown += [name for name in one.variables if name not in ours and name not in OTHERS and not _of_store(name)]
    settings(**{field: ours[name] for name, field in fields.items() if name not in unknown})
    return [name for name in unknown if name not in _outside_the_settings(one.program)]


def _settings_of(program: str) -> tuple[str, type[Settings] | type[AgentSettings]]:
    return ("FEDLOOM_", Settings) if program == "coordinator" else ("FEDLOOM_WORKER_", AgentSettings)


def _outside_the_settings(program: str) -> set[str]:
    if program == "coordinator":
        return {coordinator.settings.FILE_VARIABLE}
    return {worker_agent.settings.FILE_VARIABLE, worker_agent.__main__.TOKEN_VARIABLE}


def _of_store(name: str) -> bool:
    if not name.startswith("AWS_"):
        return False
    try:
        S3Store("bucket", config={**STORE_KEYS, name.lower(): "true"})  # type: ignore[misc]
    except UnknownConfigurationKeyError:
        return False
    return True


def is_pinned(image: str) -> bool:
    """True if the tag of the image names one release: three numbers with points, two for PostgreSQL, or a date."""
    repository, _, tag = image.rpartition(":")
    return (
        bool(repository)
        and re.match(r"\d+\.\d+\.\d+\b|1[67]\.\d+\b|12\.\d+\b|RELEASE\.\d{4}-\d\d-\d\dT", tag) is not None
    )


class TestCommands:
    def test_every_program_and_process_is_started_somewhere(self) -> None:
        commands = {(one.program, one.arguments[0]) for one in PROGRAM_STARTS}
        roles = {("coordinator", name) for name in ("up", "serve", "work", "beat", "migrate")}
        assert commands == roles | {("worker-agent", "run")}

    @pytest.mark.parametrize("one", PROGRAM_STARTS, ids=names(PROGRAM_STARTS))
    def test_a_started_command_exists(self, one: ProgramStart) -> None:
        parse(one.program, one.arguments)

    @pytest.mark.parametrize("arguments", [["serves"], ["serve", "--reload"], ["keys", "create"], []])
    def test_one_that_does_not_exist_is_refused(self, arguments: list[str]) -> None:
        with pytest.raises(LookupError):
            parse("coordinator", arguments)

    @pytest.mark.parametrize("page", ["operators.md", "node-owners.md"])
    def test_commands_in_a_guide_exist(self, page: str) -> None:
        blocks = re.findall(r"```(?:bash|console)\n(.*?)```", (ROOT / "docs" / page).read_text("utf-8"), re.DOTALL)
        lines = [line.strip().split("  #")[0] for block in blocks for line in block.splitlines()]
        services = deployed.compose()["services"]
        for line in lines:
            words = line.split()
            if words[:1] and words[0] in PROGRAMS:
                parse(words[0], words[1:])
            if "run" in words and words[:2] == ["docker", "compose"]:
                place = next(index for index, word in enumerate(words) if word in services)
                parse("worker-agent" if words[place].startswith("worker") else "coordinator", words[place + 1 :])


class TestVariables:
    @pytest.mark.parametrize("one", [*PROGRAM_STARTS, *EXAMPLES], ids=names([*PROGRAM_STARTS, *EXAMPLES]))
    def test_every_variable_is_read_by_the_program_or_named_as_anothers(self, one: ProgramStart) -> None:
        assert one.variables
        assert unread_variables(one) == []

    def test_one_that_nobody_reads_is_found(self) -> None:
        wrong = {"FEDLOOM_DATABSE_URL": "x", "AWS_ENDPOINT_URI": "x", "FEDLOOM_HOST": "::", "DEBUG": "1"}
        unread = unread_variables(ProgramStart("here", "coordinator", ("up",), wrong))
        assert unread == ["FEDLOOM_DATABSE_URL", "AWS_ENDPOINT_URI", "DEBUG"]

    def test_a_workers_variable_is_none_of_the_coordinators(self) -> None:
        assert unread_variables(ProgramStart("here", "coordinator", (), {"FEDLOOM_WORKER_URL": "x"})) == [
            "FEDLOOM_WORKER_URL"
        ]

    def test_the_example_for_compose_holds_what_it_asks_for(self) -> None:
        examples = {*deployed.example("compose.env.example"), *deployed.example("images.env")}
        assert examples == deployed.environment_variables()

    def test_the_example_of_a_workers_file_is_understood(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(worker_agent.settings.FILE_VARIABLE, str(DEPLOY / "worker-agent.toml.example"))
        settings = AgentSettings()
        assert (list(settings.models), list(settings.datasets)) == (["minilm"], ["tickets"])
        assert settings.policy.approve == "ask"


class TestImages:
    def bases(self) -> list[str]:
        every = [step for file in DOCKERFILES.values() for step in deployed.instructions(file)]
        return [deployed.without_digest(rest.split()[0]) for name, rest in every if name == "FROM"]

    def test_every_image_is_pinned_to_a_release(self) -> None:
        images = [deployed.without_digest(service["image"]) for service in deployed.compose()["services"].values()]
        assert len(self.bases()) == 6
        assert [image for image in self.bases() + images if not is_pinned(image)] == []

    @pytest.mark.parametrize(
        "image", ["redis", "redis:latest", "nginx:1-alpine", "python:3.11-slim", "x/minio:RELEASE"]
    )
    def test_a_tag_that_moves_is_no_pin(self, image: str) -> None:
        assert not is_pinned(image)

    def test_our_own_have_the_version_of_the_code(self) -> None:
        images = [service["image"] for service in deployed.compose()["services"].values()]
        ours = {image.rpartition(":")[2] for image in images if image.startswith("fedloom-")}
        metadata = yaml.safe_load((chart.CHART / "Chart.yaml").read_text("utf-8"))
        assert ours | {metadata["appVersion"]} == {__version__}

    @pytest.mark.parametrize("name", ["coordinator", "worker"])
    def test_what_pip_installs_has_hashes_but_for_torch_which_has_a_version(self, name: str) -> None:
        steps = [
            rest
            for instruction, rest in deployed.instructions(DOCKERFILES[f"{name}.Dockerfile"])
            if instruction == "RUN"
        ]
        installs = [part.split() for step in steps for part in step.split("&&") if "pip install" in part]
        files = [words[-1] for words in installs if "--require-hashes" in words]
        assert files == ["requirements-build.txt", f"requirements-{name}.txt"]
        torch, ours = (words for words in installs if "--require-hashes" not in words)
        assert torch[-3:] == ["-c", "constraints.txt", "torch"]
        assert {"--no-index", "--no-deps", "/wheels/*.whl"} <= set(ours)

    @pytest.mark.parametrize("name", ["coordinator.Dockerfile", "worker.Dockerfile"])
    def test_what_is_copied_exists_and_is_let_in(self, name: str) -> None:
        patterns = (DEPLOY / f"{name}.dockerignore").read_text("utf-8").splitlines()
        copies = [
            rest.split()[:-1]
            for instruction, rest in deployed.instructions(DOCKERFILES[name])
            if instruction == "COPY"
        ]
        sources = [source for part in copies for source in part if not part[0].startswith("--from")]
        assert {"federated", "constraints.txt"} <= set(sources)
        assert [source for source in sources if not (ROOT / source).exists() or f"!{source}" not in patterns] == []


class TestNotAsRoot:
    def test_every_image_has_a_user_by_number(self) -> None:
        assert {name: deployed.last(file, "USER") for name, file in DOCKERFILES.items()} == dict.fromkeys(
            DOCKERFILES, "10001:10001"
        )

    @pytest.mark.parametrize("name", deployed.compose()["services"])
    def test_every_service_has_one_and_no_capability(self, name: str) -> None:
        service: dict[str, Any] = deployed.compose()["services"][name]
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]

    @pytest.mark.parametrize("path", deployed.UNITS, ids=lambda path: path.name)
    def test_every_unit_has_one(self, path: Path) -> None:
        service = deployed.unit(path)["Service"]
        assert service["User"].startswith("fedloom")
        assert (service["NoNewPrivileges"], service["CapabilityBoundingSet"]) == ("yes", "")


class TestComposition:
    def test_two_of_web_and_background_and_one_beat(self) -> None:
        services = deployed.compose()["services"]
        replicas = {name: service.get("deploy", {}).get("replicas", 1) for name, service in services.items()}
        assert (replicas["web"], replicas["background"], replicas["beat"]) == (2, 2, 1)
        assert [name for name in services if name.startswith("worker-")] == ["worker-1", "worker-2"]

    def test_only_the_load_balancer_stands_in_both_networks_and_is_published(self) -> None:
        services = deployed.compose()["services"]
        public = [name for name, service in services.items() if "ports" in service]
        between = [name for name, service in services.items() if {"backend", "frontend"} <= set(service["networks"])]
        assert public == between == ["loadbalancer"]
        assert deployed.compose()["networks"]["backend"] == {"internal": True}

    def test_what_is_depended_on_is_there_and_has_what_is_waited_for(self) -> None:
        services = deployed.compose()["services"]
        for service in services.values():
            waits = service.get("depends_on", {})
            for name, wait in (waits if isinstance(waits, dict) else {key: {} for key in waits}).items():
                assert name in services
                assert wait.get("condition") != "service_healthy" or "healthcheck" in services[name]
