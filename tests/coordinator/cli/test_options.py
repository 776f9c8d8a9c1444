"""Options and help texts of the command line."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from coordinator.__main__ import app
from federated import __version__


def commands(group: Any, path: str = "coordinator") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")


COMMANDS = dict(commands(typer.main.get_group(app)))


def test_version_prints_the_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"{__version__}\n")


def test_help_begins_with_a_description() -> None:
    assert "Run and manage a Fedloom coordinator" in CliRunner().invoke(app, ["--help"]).stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_one_sentence_of_help(name: str) -> None:
    text = COMMANDS[name].help
    assert text.endswith(".")
    assert ". " not in text


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not hasattr(command, "commands")])
def test_an_option_names_its_default(name: str) -> None:
    options = [one for one in COMMANDS[name].params if one.param_type_name == "option" and one.name != "help"]
    assert options
    assert [one.name for one in options if "efault" not in one.help] == []
