"""The tutorial for authors of algorithms: its files are those of the example, and its commands run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs/algorithm-authors.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", TEXT, re.DOTALL))
PROGRAMS = re.findall(r"<!-- run -->\n```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = re.findall(r"^python (-m pytest \S+ -k \w+)$", TEXT, re.MULTILINE)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The page's files, installed by pip."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name, text in FILES.items():
        path = source / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--quiet", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    return {**os.environ, "PYTHONPATH": f"{site}:{REPOSITORY}"}


def test_its_files_are_those_of_the_example() -> None:
    example = REPOSITORY / "examples/fedprox"
    files = {path for path in example.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {str(path.relative_to(example)): path.read_text(encoding="utf-8") for path in files} == FILES


def test_the_algorithm_is_short() -> None:
    lines = [line for name, text in FILES.items() if name.endswith(".py") for line in text.splitlines() if line]
    assert len(lines) <= 40


@pytest.mark.parametrize("program", PROGRAMS)
def test_it_learns_in_a_simulation(environment: dict[str, str], program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split(",")) == 4


@pytest.mark.parametrize("command", COMMANDS)
def test_the_common_suite_passes_for_it(environment: dict[str, str], command: str) -> None:
    program = [sys.executable, *command.split(), "-p", "no:cacheprovider"]
    done = subprocess.run(program, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert (len(PROGRAMS), len(COMMANDS)) == (1, 1)
